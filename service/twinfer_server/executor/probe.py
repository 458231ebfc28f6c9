"""Probing: a member is tried with 1, 2 and 3 samples before it is served, and its answers are compared."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidEnsemble
from ..types import Samples
from .bucket import Bucket
from .member import Member

logger = logging.getLogger(__name__)

RELATIVE_TOLERANCE = 1e-3
"""Generous, for kernels differ with the batch; a member that mixes rows is off by far more."""


def probe_member(member: Member) -> Tensor:
    """Find the shape of the member's output and check that samples do not touch each other.

    Gives its outputs for some samples, float32 [samples, ...]. Raises InvalidEnsemble, with the remedy, where the batch
    dimension is fixed, or where a sample's answer depends on its neighbours.
    """
    key = f"members.{member.name}.model"
    samples = [_example(member, seed) for seed in range(min(3, member.max_samples))]
    answers = {count: _answer(member, samples[:count]) for count in range(1, len(samples) + 1)}
    most = max(answers)
    member.output_shape, *tap_shapes = [tuple(output.shape[1:]) for output in answers[most]]
    member.tap_shapes = tuple(tap_shapes)
    together = {count: outputs[0] for count, outputs in answers.items()}
    for count, outputs in together.items():
        if outputs.shape != (count, *member.output_shape):
            raise InvalidEnsemble(
                f"{key}: {count} samples gave an output of shape {list(outputs.shape)}; "
                f"allowed: {[count, *member.output_shape]}, one output per sample"
            )
    for place in range(most):
        alone = _answer(member, samples[place : place + 1])[0][0]
        # What is not finite must be so in both, and the same; its difference would be NaN.
        error = (together[most][place] - alone).masked_fill(_same(together[most][place], alone), 0.0).abs().max().item()
        allowed = RELATIVE_TOLERANCE * max(1.0, alone.masked_fill(~alone.isfinite(), 0.0).abs().max().item())
        if not error <= allowed:
            raise InvalidEnsemble(
                f"{key}: a sample's answer changes by {error:.3g} when it shares a batch with others; allowed: {allowed:.3g}. "
                "The model mixes its samples: put it into evaluation mode (batch normalisation, dropout) before exporting it"
            )
    return together[most]


def check_places(member: Member) -> None:
    """Warn of a deterministic member that gives the same sample other last bits at another place of its one bucket.

    Kernels may compute the rows of a matrix in blocks, and those that are left over another way; no padding helps there.
    """
    outputs = _answer(member, [_example(member, 0)] * member.max_samples)[0]
    differs = ~_same(outputs, outputs[:1])
    if differs.any():
        error = (outputs - outputs[:1]).masked_fill(~differs, 0.0).abs().max().item()
        logger.warning(
            "member %s answers the same sample differently, by up to %.2g, at another place of a flight: its answers are the same "
            "to the bit only at the same place", member.name, error,
        )  # fmt: skip


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _example(member: Member, seed: int) -> Samples:
    return tuple(array[:1] for array in member.example(seed, member.token_sizes[-1]))


def _answer(member: Member, samples: Sequence[Samples]) -> list[Tensor]:
    """Compute samples on the calling thread, and bring all outputs to the host."""
    key, slot, count = f"members.{member.name}.model", member.slots[0], len(samples)
    bucket = Bucket(count, member.token_sizes[-1])
    try:
        slot.write(samples, bucket)
        slot.copy_in(bucket)
        return [output.cpu() for output in member.compute_all(slot, bucket, is_checked=True)]
    except InvalidEnsemble:
        raise
    except Exception as error:
        if count == 1:
            raise InvalidEnsemble(f"{key}: the member raised on one sample: {type(error).__name__}: {error}") from error
        raise InvalidEnsemble(
            f"{key}: the member answers 1 sample and raises on {count} ({type(error).__name__}: {error}). Its batch is fixed: "
            "export it with a dynamic one (dynamic_shapes={...: {0: torch.export.Dim('batch')}})"
        ) from error
    finally:
        if member.device.torch_device.type == "cuda":
            torch.cuda.synchronize(member.device.torch_device)  # the slot is written again at once, and nothing is in the air
