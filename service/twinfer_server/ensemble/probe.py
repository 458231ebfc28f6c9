"""Probing: a member is tried with 1, 2 and 3 samples before it is served, and its answers are compared."""

import torch
from torch import Tensor

from ..errors import InvalidEnsemble
from .bucket import Bucket
from .member import Member

RELATIVE_TOLERANCE = 1e-3
"""Generous, for kernels differ with the batch; a member that mixes rows is off by far more."""


def probe_member(member: Member) -> Tensor:
    """Find the shape of the member's output and check that samples do not touch each other.

    Gives its outputs for some samples, float32 [samples, ...]. Raises InvalidEnsemble, with the remedy, where the batch
    dimension is fixed, or where a sample's answer depends on its neighbours.
    """
    key = f"members.{member.name}.model"
    answers = {count: _answer(member, key, first=0, count=count) for count in (1, 2, 3) if count <= member.max_samples}
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
        alone = _answer(member, key, first=place, count=1)[0][0]
        # What is not finite must be so in both, and the same; its difference would be NaN.
        error = (together[most][place] - alone).masked_fill(_same(together[most][place], alone), 0.0).abs().max().item()
        allowed = RELATIVE_TOLERANCE * max(1.0, alone.masked_fill(~alone.isfinite(), 0.0).abs().max().item())
        if not error <= allowed:
            raise InvalidEnsemble(
                f"{key}: a sample's answer changes by {error:.3g} when it shares a batch with others; allowed: {allowed:.3g}. "
                "The model mixes its samples: put it into evaluation mode (batch normalisation, dropout) before exporting it"
            )
    return together[most]


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _answer(member: Member, key: str, first: int, count: int) -> list[Tensor]:
    """Compute samples `first` to `first + count` of the probe's own, on the calling thread, and bring all outputs to the host."""
    slot = member.slots[0]
    examples = [member.example(seed, member.token_sizes[-1]) for seed in range(first, first + count)]
    samples = [tuple(array[:1] for array in example) for example in examples]
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
