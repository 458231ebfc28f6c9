"""Sampling: the made-up samples on which a member's precision and acceleration are tried."""

from collections.abc import Sequence
from typing import Any

from ..inputs import InputKind, UpstreamInput
from ..tuning import ProbeSamples
from ..types import Samples
from .bucket import Bucket
from .member import Member
from .slot import Slot

MOST_SAMPLES = 32
"""More than this say nothing new about speed, and take long."""
SEEDS = 16
"""How many different samples there are."""
FEW = 3
"""A number of samples that stands for any other; no size that means something else, as 1 does."""


def make_probe_samples(member: Member, rows: Sequence[Samples] = ()) -> ProbeSamples:
    """Stage a member's samples in its first slot, which nothing else may use until it is tuned.

    They are those of `rows`, as far as they go and from the first again; without rows they are made up.
    """
    least = member.samples_per_row if member.has_fixed_samples else 1
    most = max(least, min(member.max_samples, MOST_SAMPLES) // least * least)
    longest, shortest = member.token_sizes[-1], member.token_sizes[0]
    slot = member.slots[0]
    given = [tuple(array[place : place + 1] for array in row) for row in rows for place in range(len(row[0]))]
    examples = given or [tuple(array[:1] for array in member.example(seed, longest)) for seed in range(min(SEEDS, most))]
    whole = Bucket(most, longest)
    slot.write([examples[number % len(examples)] for number in range(most)], whole)
    slot.copy_in(whole)
    counts = [member.max_samples] if member.is_deterministic else sorted({least, min(FEW * least, most)})
    counts = [min(count, most) for count in counts]
    return ProbeSamples(
        paced={count: member.arguments(slot, Bucket(count, longest)) for count in sorted({counts[0], most})},
        # At fewer tokens than the buffer is long: else its strides would look as if they grew with the tokens.
        shapes=tuple(member.arguments(slot, Bucket(count, shortest)) for count in counts),
        growing=tuple(dimensions for kind in member.inputs for dimensions in _list_growing(member, slot, kind)),
        read=member.read,
    )


def _list_growing(member: Member, slot: Slot, kind: InputKind[Any] | UpstreamInput) -> list[tuple[int, ...]]:
    """List, for each argument that an input gives, the dimensions that grow: samples, and tokens where they do."""
    if member.is_deterministic:
        dimensions: tuple[int, ...] = ()
    elif len(member.token_sizes) > 1 and any(staging.is_ragged for staging in kind.buffers):
        dimensions = (0, 1)
    else:
        dimensions = (0,)
    first = sum(len(other.buffers) for other in member.inputs[: member.inputs.index(kind)])
    staged = slot.staged(Bucket(1, member.token_sizes[0]))[first : first + len(kind.buffers)]
    return [dimensions] * len(kind.arguments(staged))
