"""What every member takes of the device's memory, measured at warm-up, and the budget that all of them must fit into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import InvalidEnsemble
from .bucket import Bucket
from .member import Member

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class MemberMemory:
    """One member's part, in bytes: parameters and buffers; both slots' staging; captures; and, on its largest bucket, activations.

    Parameters that an earlier member has too count there alone.
    """

    parameters: int
    staging: int
    captures: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.staging + self.captures + self.activations


def measure_memory(members: Sequence[Member]) -> dict[str, MemberMemory]:
    """Measure every warm member, by name; with nothing in the air, on a thread that the device has prepared."""
    with torch.inference_mode():
        return {member.name: _measure(member) for member in members}


def _measure(member: Member) -> MemberMemory:
    """Compute the member once at its largest bucket on samples of its own, outside its captures."""
    slot, bucket = member.slots[0], Bucket(member.max_samples, member.token_sizes[-1])
    example = tuple(array[:1] for array in member.example(0, bucket.tokens))
    slot.write([example] * bucket.samples, bucket)
    slot.copy_in(bucket)
    activations = member.device.peak_bytes(lambda: member.compute(slot, bucket))
    staging = sum(slot.device_bytes for slot in member.slots)
    return MemberMemory(member.model.parameter_bytes - member.shared_bytes, staging, member.cuda_graph_bytes, activations)


def check_budget(memory: Mapping[str, MemberMemory], flight_bytes: int, budget_bytes: int | None) -> None:
    """Raise InvalidEnsemble, with the sums, if the members take more than the budget; None is no limit.

    `flight_bytes` is what captures of whole flights take, which belong to all members together.
    """
    total = sum(member.total for member in memory.values()) + flight_bytes
    if budget_bytes is None or total <= budget_bytes:
        return
    parts = ("parameters", "staging", "captures", "activations")
    lines = [
        f"{name} {member.total / MEGABYTE:.4g} MB ({', '.join(f'{part} {getattr(member, part) / MEGABYTE:.3g}' for part in parts)})"
        for name, member in memory.items()
    ]
    if flight_bytes:
        lines.append(f"captures of whole flights {flight_bytes / MEGABYTE:.4g} MB")
    raise InvalidEnsemble(
        f"memory: the members take {total / MEGABYTE:.4g} MB; allowed: {budget_bytes / MEGABYTE:.4g} MB. {'; '.join(lines)}. "
        "A smaller batching.max_batch_size takes less"
    )
