"""Which rows a fusion is fitted to and which are kept back to judge it."""

import numpy as np
from numpy.typing import NDArray

from .rows import InvalidRows, LabelledRows

MIN_ROWS = 20
"""Fewer on either side say nothing."""


def split_rows(rows: LabelledRows, seed: int) -> tuple[LabelledRows, LabelledRows]:
    """Split rows into halves, those to fit to and those to judge on, drawn by `seed`; raises InvalidRows.

    Stratified: rows with the same labels are dealt out in turn, so both halves have as many of each, give or take one.
    """
    half = deal_folds(rows.targets, 2, seed)
    fitting, held_out = (rows.pick(np.flatnonzero(half == number).tolist()) for number in (0, 1))
    check_count(fitting)
    check_count(held_out)
    return fitting, held_out


def check_count(rows: LabelledRows) -> None:
    """Refuse what is too little to fit to, or to judge on; raises InvalidRows."""
    if len(rows) < MIN_ROWS:
        raise InvalidRows(f"{rows.file}: found {len(rows)} rows to fit to or to judge on; allowed: at least {MIN_ROWS} for each")


def deal_folds(targets: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.intp]:
    """Deal rows out to folds for cross-validation, stratified; gives each row's fold, int [rows]."""
    order = np.random.default_rng(seed).permutation(len(targets))
    _, kinds = np.unique(targets[order], axis=0, return_inverse=True)
    dealt = order[np.argsort(kinds, kind="stable")]
    fold = np.empty(len(targets), dtype=np.intp)
    fold[dealt] = np.arange(len(targets)) % folds
    return fold
