"""Calibration samples: the made-up samples that a member is compiled for, and compared on with fp32."""

from typing import Any

from ..inputs import FedInput, InputKind
from ..precision import CalibrationSamples
from .bucket import Bucket
from .member import Member
from .slot import Slot

MAX_SAMPLES = 32
"""More take long and say nothing new."""
SEEDS = 16
"""How many different samples there are."""
FEW = 3
"""A number of samples that stands for any other; no size that means something else, as 1 does."""


def make_calibration_samples(member: Member) -> CalibrationSamples:
    """Write made-up samples into the member's first staging buffers, which nothing else may use until it is converted."""
    least = member.samples_per_row if member.has_fixed_samples else 1
    most = max(least, min(member.max_samples, MAX_SAMPLES) // least * least)
    longest, shortest = member.token_sizes[-1], member.token_sizes[0]
    slot = member.slots[0]
    examples = [tuple(array[:1] for array in member.example(seed, longest)) for seed in range(min(SEEDS, most))]
    whole = Bucket(most, longest)
    slot.write([examples[number % len(examples)] for number in range(most)], whole)
    slot.copy_in(whole)
    counts = [most] if member.is_deterministic else sorted({least, min(FEW * least, most)})
    return CalibrationSamples(
        largest=member.arguments(slot, whole),
        # At fewer tokens than the buffer is long: else its strides would look as if they grew with the tokens.
        shapes=tuple(member.arguments(slot, Bucket(count, shortest)) for count in counts),
        dynamic=tuple(dimensions for kind in member.inputs for dimensions in _list_dynamic(member, slot, kind)),
        read=member.read,
    )


def _list_dynamic(member: Member, slot: Slot, kind: InputKind[Any] | FedInput) -> list[tuple[int, ...]]:
    """List, for each argument that an input makes, the dimensions of any size: samples, and tokens where they are padded."""
    if member.is_deterministic:
        dimensions: tuple[int, ...] = ()
    elif len(member.token_sizes) > 1 and any(staging.is_ragged for staging in kind.staging):
        dimensions = (0, 1)
    else:
        dimensions = (0,)
    first = sum(len(other.staging) for other in member.inputs[: member.inputs.index(kind)])
    staged = slot.staged(Bucket(1, member.token_sizes[0]))[first : first + len(kind.staging)]
    return [dimensions] * len(kind.arguments(staged))
