"""Calibration samples: the made-up samples that a member is compiled for, and compared on with fp32."""

from typing import Any

from ..inputs import InputKind, UpstreamInput
from ..precision import CalibrationSamples
from .latency import Bucket
from .member import Member

MAX_SAMPLES = 32
"""More take long and say nothing new."""
SEEDS = 16
"""How many different samples there are."""
FEW = 3
"""A number of samples that stands for any other; no size that means something else, as 1 does."""


def make_calibration_samples(member: Member) -> CalibrationSamples:
    """Write made-up samples into the member's first staging buffers, which nothing else may use until it is converted."""
    most = min(member.max_samples, MAX_SAMPLES)
    longest, shortest = member.token_sizes[-1], member.token_sizes[0]
    buffers, whole = member.buffers[0], Bucket(most, longest)
    examples = [member.example(seed, longest) for seed in range(min(SEEDS, most))]
    buffers.write([examples[number % len(examples)] for number in range(most)], whole)
    buffers.copy_in(whole)
    counts = [most] if member.is_deterministic else sorted({1, min(FEW, most)})
    return CalibrationSamples(
        largest=member.arguments(buffers, whole),
        # At fewer tokens than the buffer is long: else its strides would look as if they grew with the tokens.
        shapes=tuple(member.arguments(buffers, Bucket(count, shortest)) for count in counts),
        dynamic=tuple(dimensions for kind in member.inputs for dimensions in _list_dynamic(member, kind)),
        read=member.read,
    )


def _list_dynamic(member: Member, kind: InputKind[Any] | UpstreamInput) -> list[tuple[int, ...]]:
    """List, for each argument that an input makes, the dimensions of any size: samples, and tokens where they are padded."""
    if member.is_deterministic:
        dimensions: tuple[int, ...] = ()
    elif len(member.token_sizes) > 1 and any(buffer.is_ragged for buffer in kind.buffers):
        dimensions = (0, 1)
    else:
        dimensions = (0,)
    first = sum(len(other.buffers) for other in member.inputs[: member.inputs.index(kind)])
    staged = member.buffers[0].inputs(Bucket(1, member.token_sizes[0]))[first : first + len(kind.buffers)]
    return [dimensions] * len(kind.arguments(staged))
