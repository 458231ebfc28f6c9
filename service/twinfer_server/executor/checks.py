"""Checks of a loaded member: samples must not touch each other, and outputs must be what the ensemble's file says they are."""

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..fusion import ROUNDING
from ..types import Samples
from .member import Member

logger = logging.getLogger(__name__)

RELATIVE_TOLERANCE = 1e-3
"""Generous, for kernels differ with the batch; a member that mixes samples is off by far more."""
PADDED_TOKENS = 11
"""How many tokens the text has that is computed with padding behind it and without."""
EXACTLY = 1e-5
"""How close to 1 the sums of logits have to be for them to be taken for probabilities."""


def check_member(member: Member, task: str) -> None:
    """Compute a member on 1, 2 and 3 samples, keep the shapes of its outputs, and compare what it gives; raises InvalidEnsemble.

    Call it in inference mode, on a thread that the device has prepared, with nothing under way.
    """
    key = f"members.{member.name}.model"
    samples = [member.example(seed, member.token_sizes[-1]) for seed in range(min(3, member.max_samples))]
    outputs = {count: _compute(member, samples[:count]) for count in range(1, len(samples) + 1)}
    most = max(outputs)
    member.output_shape, *extra = [tuple(output.shape[1:]) for output in outputs[most]]
    member.extra_shapes = tuple(extra)
    for count, (output, *_) in outputs.items():
        if output.shape != (count, *member.output_shape):
            raise InvalidEnsemble(
                f"{key}: {count} samples gave an output of shape {list(output.shape)}; "
                f"allowed: {[count, *member.output_shape]}, one output per sample"
            )
    together = outputs[most][0]
    for index in range(most):
        alone = _compute(member, samples[index : index + 1])[0][0]
        # What is not finite must be so in both, and the same; its difference would be NaN.
        error = (together[index] - alone).masked_fill(_same(together[index], alone), 0.0).abs().max().item()
        allowed = RELATIVE_TOLERANCE * max(1.0, alone.masked_fill(~alone.isfinite(), 0.0).abs().max().item())
        if not error <= allowed:
            raise InvalidEnsemble(
                f"{key}: a sample's output changes by {error:.3g} when it shares a batch with others; allowed: {allowed:.3g}. "
                "The model mixes its samples: put it into evaluation mode (batch normalisation, dropout) before exporting it"
            )
    _check_kind(member, task, together)


def check_padding(member: Member) -> None:
    """Refuse a member that takes a mask and yet answers otherwise where padding lies behind a text; raises InvalidEnsemble."""
    if len(member.token_sizes) < 2 and not any(buffer.is_ragged for buffer in member.buffer_specs):
        return
    sample = member.example(0, min(PADDED_TOKENS, member.token_sizes[-1]))
    padded = _compute(member, [sample])[0]
    arguments: list[Tensor] = []
    staged = [torch.from_numpy(array).to(member.device.torch_device) for array in sample]
    for kind in member.inputs:
        arguments.extend(kind.arguments(staged[: len(kind.buffers)]))
        staged = staged[len(kind.buffers) :]
    bare = member.read(member.model.module(*arguments))[0].cpu()
    error = (padded - bare).masked_fill(_same(padded, bare), 0.0).abs().max().item()
    allowed = RELATIVE_TOLERANCE * max(1.0, bare.masked_fill(~bare.isfinite(), 0.0).abs().max().item())
    if not error <= allowed:
        raise InvalidEnsemble(
            f"members.{member.name}.model: found {quote(member.spec.model)}, whose output for a text changes by {error:.3g} when "
            f"it is padded on the right, behind its mask; allowed: {allowed:.3g}. It needs another padding_side, or none"
        )


def check_positions(member: Member) -> None:
    """Warn of a deterministic member that gives the same sample other last bits at another position of its one bucket.

    Kernels may compute the rows of a matrix in blocks, and those that are left over another way; no padding helps there.
    """
    output = _compute(member, [member.example(0, member.token_sizes[-1])] * member.max_samples)[0]
    differs = ~_same(output, output[:1])
    if differs.any():
        error = (output - output[:1]).masked_fill(~differs, 0.0).abs().max().item()
        logger.warning(
            "member %s answers the same sample differently, by up to %.2g, at another position of a batch: its answers are the "
            "same to the bit only at the same position", member.name, error,
        )  # fmt: skip


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _compute(member: Member, samples: Sequence[Samples]) -> list[Tensor]:
    """Compute samples on the calling thread, and bring all outputs to the host; raises InvalidEnsemble."""
    key, count = f"members.{member.name}.model", len(samples)
    try:
        return member.compute_checked(samples)
    except InvalidEnsemble:
        raise
    except Exception as error:
        if count == 1:
            raise InvalidEnsemble(f"{key}: the member raised on one sample: {type(error).__name__}: {error}") from error
        raise InvalidEnsemble(
            f"{key}: the member answers 1 sample and raises on {count} ({type(error).__name__}: {error}). Its batch is fixed: "
            "export it with a dynamic one (dynamic_shapes={...: {0: torch.export.Dim('batch')}})"
        ) from error


def _check_kind(member: Member, task: str, outputs: Tensor) -> None:
    """Refuse probabilities that are none, and logits that are probabilities: nothing else notices a softmax too many.

    outputs: float32 [samples, ...]; samples that are not finite say nothing, and a warning where there are no others: made-up input
    may be beyond what the member was made for.
    """
    kind = member.spec.output.kind
    finite = outputs[outputs.reshape(len(outputs), -1).isfinite().all(1)]
    if not len(finite):
        logger.warning("member %s answered all of %d made-up samples with NaN or an infinity", member.name, len(outputs))
    if kind not in ("logits", "probabilities") or finite.ndim != 2 or not finite.numel():
        return
    low, high, sums = finite.min().item(), finite.max().item(), finite.sum(1)
    error = (sums - 1).abs().max().item()
    if kind == "probabilities":
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise _mismatch(member, kind, f"it gives {low:.3g} to {high:.3g}", "logits")
        if task == "classification" and error > ROUNDING:
            raise _mismatch(member, kind, f"a sample's sum to {sums[(sums - 1).abs().argmax()].item():.3g}", "logits")
    elif task == "classification" and finite.shape[1] > 1 and low >= 0 and error < EXACTLY:
        raise _mismatch(member, kind, "every sample's are at least 0 and sum to 1", "probabilities")


def _mismatch(member: Member, kind: str, found: str, other: Literal["logits", "probabilities"]) -> InvalidEnsemble:
    return InvalidEnsemble(f"members.{member.name}.output.kind: found {kind!r}, and {found}; allowed: what it gives, {other!r}")


def embed_texts(member: Member, lines: Sequence[str]) -> Tensor:
    """Embed texts that the ensemble itself brings with a member that takes a text and nothing else: float32 [texts, features].

    Call it in inference mode, with nothing under way.
    """
    kind, embedded = member.request_inputs[0], []
    for first in range(0, len(lines), member.max_samples):
        samples = [kind.prepare(kind.decode(line)) for line in lines[first : first + member.max_samples]]
        buffers, bucket = member.buffers[0], member.bucket(samples)
        buffers.write(samples, bucket)
        buffers.copy_in(bucket)
        embedded.append(member.compute(buffers, bucket)[0][: len(samples)].cpu())
    return torch.cat(embedded)
