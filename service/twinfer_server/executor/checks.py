"""Checks of a loaded member: samples must not touch each other, and outputs must be what the ensemble's file says they are."""

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import InvalidEnsemble, InvalidInput, outline, quote
from ..fusion import ROUNDING
from ..inputs import TextInput
from ..loaders.arguments import name_dtype
from ..types import Array, Samples
from .bounds import explain_length
from .member import Member

logger = logging.getLogger(__name__)

RELATIVE_TOLERANCE = 1e-3
"""Generous, for kernels differ with the batch; a member that mixes samples is off by far more."""
STEPS = 8
"""How many of its dtype's steps a coarser dtype than float32 may be off."""
MAX_WORDS = 30_000
"""The most of a made-up text; the longest that are taken from callers have some more."""
EXACTLY = 1e-5
"""How close to 1 the sums of logits have to be for them to be taken for probabilities."""


def check_member(member: Member, task: str) -> None:
    """Compute a member on made-up samples, keep the shapes of its outputs, and compare what it gives; raises InvalidEnsemble.

    Each alone first, then one of them twice, then different ones, then texts of different lengths: where it raises or differs, all
    before is known to be well. Call it in inference mode, on a thread that the device has prepared, with nothing under way.
    """
    samples = [member.example(seed, member.token_sizes[-1]) for seed in range(min(3, member.max_samples))]
    raised = ("raised on one sample", *["answers one sample and raises on another, which is alone too"] * 2)
    outputs = [(1, _compute(member, [sample], what)) for sample, what in zip(samples, raised, strict=False)]
    alone = [output for _, (output, *_) in outputs]
    together = alone[0]
    if len(samples) > 1:
        outputs.append((2, _compute(member, samples[:1] * 2, "answers 1 sample and raises on twice the same")))
        for count in range(2, len(samples) + 1):
            what = f"answers twice the same sample and raises on {count} different ones"
            outputs.append((count, _compute(member, samples[:count], what)))
        together = outputs[-1][1][0]
    member.output_shape, *extra = [tuple(output.shape[1:]) for output in outputs[-1][1]]
    member.extra_shapes = tuple(extra)
    for count, found in outputs:
        _check_shapes(member, count, found)
    _compare(member, samples, alone, together)
    _check_lengths(member)
    _check_kind(member, task, together)


def _check_shapes(member: Member, count: int, outputs: Sequence[Tensor]) -> None:
    """Refuse outputs that are not one for each of `count` samples; raises InvalidEnsemble."""
    for output, shape in zip(outputs, (member.output_shape, *member.extra_shapes), strict=True):
        if output.shape != (count, *shape):
            raise InvalidEnsemble(
                f"members.{member.name}.model: {count} {'sample' if count == 1 else 'samples'} gave an output of shape "
                f"{list(output.shape)}; allowed: {[count, *shape]}, one output per sample"
            )


def _compare(member: Member, samples: Sequence[Samples], alone: Sequence[Tensor], together: Tensor) -> None:
    """Refuse a member that answers a sample otherwise beside others than alone; raises InvalidEnsemble.

    alone: float32 [1, ...] for each of the samples; together: float32 [samples, ...].
    """
    key = f"members.{member.name}.model"
    for index, expected in enumerate(alone):
        error, allowed = _measure(member, together[index], expected[0])
        if error <= allowed:
            continue
        again = _compute(member, samples[index : index + 1], "answers one sample and raises on the same one again")[0]
        drift, _ = _measure(member, again[0], expected[0])
        if not drift <= allowed:
            raise InvalidEnsemble(
                f"{key}: the same sample, twice alone, has outputs that differ by {drift:.3g}; allowed: {allowed:.3g}. "
                "The model draws random numbers or changes with every call: put it into evaluation mode before exporting it"
            )
        raise InvalidEnsemble(
            f"{key}: a sample's output changes by {error:.3g} when it shares a batch with others; allowed: {allowed:.3g}. The model"
            " mixes its samples: put it into evaluation mode (batch normalisation, dropout) before exporting it, if it was not"
        )


def _measure(member: Member, found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return how far two outputs of a sample are from each other, and how far they may be in the member's dtype."""
    # What is not finite must be so in both, and the same; its difference would be NaN.
    error = (found - expected).masked_fill(_same(found, expected), 0.0).abs().max().item() if expected.numel() else 0.0
    largest = expected.masked_fill(~expected.isfinite(), 0.0).abs().max().item() if expected.numel() else 0.0
    tolerance = max(RELATIVE_TOLERANCE, STEPS * torch.finfo(member.model.dtype).eps)
    return error, tolerance * max(1.0, largest)


def _check_lengths(member: Member) -> None:
    """Compare a long and a short text, padded as a batch does, with each alone and not padded; raises InvalidEnsemble."""
    if not any(buffer.is_ragged for buffer in member.buffer_specs):
        return
    try:
        samples = [_make_text(member, words) for words in (member.token_sizes[-1], 1)]
    except InvalidInput:  # a tokenizer that knows no letters
        return
    alone = [_compute_bare(member, sample) for sample in samples]
    if member.max_samples > 1:
        together = _compute(member, samples, "answers each of two texts alone, and raises on both together")[0]
    else:
        together = torch.cat([_compute(member, [sample], "answers a text, and raises on it with padding")[0] for sample in samples])
    for found, (expected,) in zip(together, alone, strict=True):
        error, allowed = _measure(member, found, expected)
        if not error <= allowed:
            raise InvalidEnsemble(
                f"members.{member.name}.model: found {quote(member.spec.model)}, whose output for a text changes by {error:.3g} "
                f"when padding lies behind it; allowed: {allowed:.3g}. The model does not leave out what its mask calls padding, "
                "or needs it on another side"
            )


def _compute_bare(member: Member, sample: Samples) -> Tensor:
    """Compute a text of just its own length: float32 [1, ...]; as it is served, where the model takes no such length."""
    compute = member.model.checked or member.model.module
    try:
        return member.read(compute(*member.arrange_samples(sample)))[0].cpu()
    except Exception:  # of the model's own
        return _compute(member, [sample], "raises on one text")[0]


def _make_text(member: Member, words: int) -> Samples:
    """Make a sample with a real text of so many words: what a model makes of made-up ids may hang on where these end.

    Raises InvalidInput where the tokenizer refuses it.
    """
    arrays: list[Array] = []
    text = " ".join(["a"] * min(words, MAX_WORDS))
    for kind in member.inputs:
        if isinstance(kind, TextInput):
            spec = member.spec.input[kind.name]
            arrays += kind.prepare((text, "a") if getattr(spec, "pair", False) else (text,))
        else:
            arrays += [array[:1] for array in kind.example(0, words)]
    return tuple(arrays)


def check_positions(member: Member) -> None:
    """Warn of a deterministic member that gives the same sample other last bits at another position of its one bucket.

    Kernels may compute the rows of a matrix in blocks, and those that are left over another way; no padding helps there.
    """
    samples = [member.example(0, member.token_sizes[-1])] * member.max_samples
    output = _compute(member, samples, f"raises on {member.max_samples} times the same sample")[0]
    differs = ~_same(output, output[:1])
    if differs.any():
        error = (output - output[:1]).masked_fill(~differs, 0.0).abs().max().item()
        logger.warning(
            "member %s answers the same sample differently, by up to %.2g, at another position of a batch: its answers are the "
            "same to the bit only at the same position", member.name, error,
        )  # fmt: skip


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _compute(member: Member, samples: Sequence[Samples], what: str) -> list[Tensor]:
    """Compute samples on the calling thread, and bring all outputs to the host; raises InvalidEnsemble that says `what` it does."""
    try:
        return member.compute_checked(samples)
    except InvalidEnsemble:
        raise
    except Exception as error:
        if len(samples) == 1 and (too_long := explain_length(member, error)):
            raise too_long from error
        key, raised = f"members.{member.name}.model", f"{type(error).__name__}: {outline(error)}"
        try:
            member.compute_checked(samples)
            what = f"{what}, and not when it is tried again"
        except Exception:  # as before
            pass
        given = ", ".join(f"{name_dtype(argument.dtype)} {list(argument.shape)}" for argument in member.stage(samples))
        remedy = _find_remedy(member, len(samples), error)
        raise InvalidEnsemble(f"{key}: the member {what}: {raised}; it was given {given}{remedy and f'. {remedy}'}") from error


def _find_remedy(member: Member, count: int, error: Exception) -> str:
    """Return what would help, where that is sure, else "": the model declares another number of samples, or lacks a token."""
    fixed = member.model.fixed_samples
    if fixed is not None and fixed != count:
        dynamic = "export it with a dynamic one (dynamic_shapes={...: {0: torch.export.Dim('batch')}})"
        return f"The model declares {fixed} {'sample' if fixed == 1 else 'samples'}. Its batch is fixed: {dynamic}"
    if member.model.loader == "huggingface" and "padding token" in str(error):
        return "Its directory names none: write pad_token_id into config.json, the id of the token that fills up shorter texts"
    return ""


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
    prepared = []
    for number, line in enumerate(lines, start=1):
        try:
            prepared.append(kind.prepare(kind.decode(line)))
        except InvalidInput as error:
            raise InvalidEnsemble(f"fusion.texts: line {number}: {error.text}") from None
    for first in range(0, len(lines), member.max_samples):
        samples = prepared[first : first + member.max_samples]
        buffers, bucket = member.buffers[0], member.bucket(samples)
        buffers.write(samples, bucket)
        buffers.copy_in(bucket)
        embedded.append(member.compute(buffers, bucket)[0][: len(samples)].cpu())
    return torch.cat(embedded)
