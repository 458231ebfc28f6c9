"""Calibration samples: the made-up samples that a member is compiled for, and compared on with fp32."""

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
    largest = member.arguments(buffers, whole)
    counts = [most] if member.is_deterministic else sorted({1, min(FEW, most)})
    # At fewer tokens than the buffer is long: else its strides would look as if they grew with the tokens.
    shapes = tuple(member.arguments(buffers, Bucket(count, shortest)) for count in counts)
    sizes = [zip(small.shape, large.shape, strict=True) for small, large in zip(shapes[0], largest, strict=True)]
    dynamic = [[dimension for dimension, (small, large) in enumerate(pairs) if small != large] for pairs in sizes]
    return CalibrationSamples(largest, shapes, dynamic, member.read)
