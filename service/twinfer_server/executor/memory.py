"""What every member takes of the device's memory, measured at warm-up, and the budget that all of them must fit into."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InvalidEnsemble
from .member import Member

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class MemberMemory:
    """One member's part, in bytes: parameters; both sets of staging buffers; CUDA graphs; activations at its largest bucket.

    Parameters that an earlier member has too count there alone. Activations are 0 on a CPU, where they are the host's own memory.
    """

    parameters: int
    staging: int
    graphs: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.staging + self.graphs + self.activations


def measure_memory(member: Member) -> MemberMemory:
    """Measure a warm member; in inference mode, with nothing under way, on a thread that the device has prepared."""
    buffers, bucket = member.buffers[0], member.largest_bucket
    buffers.write([member.example(0, bucket.tokens)] * bucket.samples, bucket)
    buffers.copy_in(bucket)
    activations = member.device.peak_bytes(lambda: member.compute(buffers, bucket))
    staging = sum(buffers.device_bytes for buffers in member.buffers)
    return MemberMemory(member.model.parameter_bytes - member.shared_bytes, staging, member.graph_bytes, activations)


def check_budget(memory: Mapping[str, MemberMemory], budget_bytes: int | None) -> None:
    """Raise InvalidEnsemble, with the sums, if the members take more than the budget; None is no limit."""
    total = sum(member.total for member in memory.values())
    if budget_bytes is None or total <= budget_bytes:
        return
    parts = ("parameters", "staging", "graphs", "activations")
    lines = [
        f"{name} {member.total / MEGABYTE:.4g} MB ({', '.join(f'{part} {getattr(member, part) / MEGABYTE:.3g}' for part in parts)})"
        for name, member in memory.items()
    ]
    raise InvalidEnsemble(
        f"memory: the members take {total / MEGABYTE:.4g} MB; allowed: {budget_bytes / MEGABYTE:.4g} MB. {'; '.join(lines)}. "
        "A smaller batching.max_batch_size takes less"
    )
