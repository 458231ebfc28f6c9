"""The samples that a member is tried on, as what its model is called with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Arguments = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ProbeSamples:
    """A member's own samples, on its device, in the memory that flights use: what is compiled for them fits flights.

    `paced` are the arguments at which it is timed and judged, by the number of samples; ascending, the last is the most.
    `shapes` are those for which it is compiled; in the last, the dimensions of each argument that `growing` lists stand for any
    size above 1. `read` gives, of what the model answers, the outputs that count: float32 [samples, ...] each.
    """

    paced: Mapping[int, Arguments]
    shapes: tuple[Arguments, ...]
    growing: tuple[tuple[int, ...], ...]
    read: Callable[[object], list[Tensor]]

    def compute(self, module: Callable[..., object], count: int) -> list[Tensor]:
        """Give what `module` answers to `count` samples."""
        return self.read(module(*self.paced[count]))
