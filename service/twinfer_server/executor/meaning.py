"""Meanings: what a member's output is said to be is compared with what it gives; nothing else notices a softmax too many."""

import logging
from typing import Literal

from torch import Tensor

from ..errors import InvalidEnsemble
from ..fusion import ROUNDING
from .member import Member

logger = logging.getLogger(__name__)

EXACTLY = 1e-5
"""How close to 1 the sums of logits have to be for them to be taken for probabilities."""


def check_meaning(member: Member, task: str, outputs: Tensor) -> None:
    """Refuse probabilities that are none, and logits that are probabilities; raises InvalidEnsemble.

    outputs: the probe's, float32 [samples, ...]; samples that are not finite say nothing, and a warning where there are no others:
    made-up input may be beyond what the member was made for.
    """
    kind = member.spec.output.kind
    rows = outputs[outputs.reshape(len(outputs), -1).isfinite().all(1)]
    if not len(rows):
        logger.warning("member %s answered all of %d made-up samples with NaN or an infinity", member.name, len(outputs))
    if kind not in ("logits", "probabilities") or rows.ndim != 2 or not rows.numel():
        return
    low, high, sums = rows.min().item(), rows.max().item(), rows.sum(1)
    error = (sums - 1).abs().max().item()
    if kind == "probabilities":
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise _mismatch(member, kind, f"it gives {low:.3g} to {high:.3g}", "logits")
        if task == "classification" and error > ROUNDING:
            raise _mismatch(member, kind, f"a sample's sum to {sums[(sums - 1).abs().argmax()].item():.3g}", "logits")
    elif task == "classification" and rows.shape[1] > 1 and low >= 0 and error < EXACTLY:
        raise _mismatch(member, kind, "every sample's are at least 0 and sum to 1", "probabilities")


def _mismatch(member: Member, kind: str, found: str, other: Literal["logits", "probabilities"]) -> InvalidEnsemble:
    return InvalidEnsemble(f"members.{member.name}.output.kind: found {kind!r}, and {found}; allowed: what it gives, {other!r}")
