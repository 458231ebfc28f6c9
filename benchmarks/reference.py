"""The reference: the two digits members called in-process in batches, with plain torch, Pillow and tokenizers.

No part of the server is in it: this is what a program gets that has all its rows at hand and calls the models itself, in one
thread. Both members, the logarithmic opinion pool and the argmax are in every figure; the disagreement is not.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from twinfer_server.demo import HeldOutRow
from twinfer_server.spec import ImageInputSpec, TextInputSpec, read_labels, read_spec

WARM_BATCHES = 20


@dataclass(frozen=True, slots=True)
class InProcess:
    """Rows per second: from encoded images and texts, and of the models and the fusion alone, on tensors that are ready."""

    rows_per_second: float
    model_rows_per_second: float


class Digits:
    """The two members and how their inputs are made, read from the folder."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        spec = read_spec(folder)
        image, text = spec.members["vision"].input["image"], spec.members["language"].input["text"]
        assert isinstance(image, ImageInputSpec)
        assert isinstance(text, TextInputSpec)
        # As the server calls them: without the guards, which cost more than these models.
        self._vision, self._language = (
            torch.export.load(folder / spec.members[name].model).module(check_guards=False).forward
            for name in ("vision", "language")
        )
        self._tokenizer = Tokenizer.from_file(str(folder / text.tokenizer))
        self._mean, self._std = image.mean[0], image.std[0]
        self.labels = read_labels(folder, spec)

    def prepare(self, rows: Sequence[tuple[bytes, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Decode and tokenise: float32 [n, 1, 8, 8], ids and mask int64 [n, t]."""
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("L")) for image, _ in rows])
        pixels = torch.from_numpy(pictures).unsqueeze(1).float().div_(255).sub_(self._mean).div_(self._std)
        encoded = [self._tokenizer.encode(text).ids for _, text in rows]
        ids = np.zeros((len(rows), max(map(len, encoded))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, tokens in enumerate(encoded):
            ids[number, : len(tokens)] = tokens
            mask[number, : len(tokens)] = 1
        return pixels, torch.from_numpy(ids), torch.from_numpy(mask)

    def infer(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> list[int]:
        """Call both members and fuse: the class of each row."""
        pooled = 0.5 * self._vision(pixels) + 0.5 * self._language(ids, mask)
        best: list[int] = pooled.softmax(-1).argmax(-1).tolist()
        return best


@cache
def _digits(folder: Path) -> Digits:
    return Digits(folder)


def run_reference(folder: Path, rows: Sequence[HeldOutRow], batch: int, seconds: float) -> InProcess:
    """Call the models with batches of `batch` rows, for `seconds` in all; raises RuntimeError where the accuracy is off."""
    digits = _digits(folder)
    encoded = [(row.image.read_bytes(), row.text) for row in rows]
    batches = [encoded[first : first + batch] for first in range(0, len(encoded) - batch + 1, batch)]
    with torch.inference_mode():
        ready = [digits.prepare(each) for each in batches]
        _check(digits, rows, [label for tensors in ready for label in digits.infer(*tensors)])
        return InProcess(
            rows_per_second=_measure(lambda turn: digits.infer(*digits.prepare(batches[turn])), len(batches), batch, seconds / 2),
            model_rows_per_second=_measure(lambda turn: digits.infer(*ready[turn]), len(batches), batch, seconds / 2),
        )


def _check(digits: Digits, rows: Sequence[HeldOutRow], found: Sequence[int]) -> None:
    right = sum(digits.labels[label] == row.label for label, row in zip(found, rows, strict=False))
    if right < 0.95 * len(found):
        raise RuntimeError(f"the reference is right in {right} of {len(found)} rows; it does not compute what the server does")


def _measure(work: Callable[[int], object], turns: int, batch: int, seconds: float) -> float:
    """Give rows per second."""
    for turn in range(WARM_BATCHES):
        work(turn % turns)
    done, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        work(done % turns)
        done += 1
    return done * batch / (now - began)
