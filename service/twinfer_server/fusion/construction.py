"""How each method is built for an ensemble whose members are known."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import InvalidEnsemble
from ..spec import EnsembleSpec
from .embedding import ConcatenationFusion, read_projection
from .fitted import REMEDY, Fitted
from .fusion import Fusion
from .opinion import PoolFusion
from .pool import Pool
from .stacking import StackingFusion, StackingHead
from .voters import list_voters


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a fusion is built from: see `build_fusion`."""

    spec: EnsembleSpec
    shapes: tuple[tuple[int, ...], ...]
    fitted: Fitted | None = None
    cached_texts: Tensor | None = None
    folder: Path | None = None

    @property
    def kinds(self) -> dict[int, str]:
        """The output kinds of the voting members, by member index."""
        members = list(self.spec.members.values())
        return {index: members[index].output.kind for index in list_voters(self.spec)}

    @property
    def temperatures(self) -> list[float]:
        """A temperature for every member, 1 where none is given."""
        return [self.spec.fusion.temperatures.get(name, 1.0) for name in self.spec.members]

    @property
    def is_multi_label(self) -> bool:
        """Whether every output is a question of its own."""
        return self.spec.task == "multi_label"

    def sizes(self, what: str) -> dict[int, int]:
        """Give how many `what` each voting member's output has, by member index; refuses an output that is no vector."""
        names = list(self.spec.members)
        for index in self.kinds:
            if len(self.shapes[index]) != 1 or self.shapes[index][0] < 1:
                raise InvalidEnsemble(
                    f"members.{names[index]}.output: a sample's output has shape {list(self.shapes[index])}; allowed: [{what}]"
                )
        return {index: self.shapes[index][0] for index in self.kinds}

    def same_size(self, what: str, least: int) -> int:
        """Give how many `what` all voting members' outputs have; refuses different numbers, and less than `least`."""
        sizes = self.sizes(what)
        found = {name: sizes[index] for index, name in enumerate(self.spec.members) if index in sizes}
        if len(set(found.values())) > 1 or min(found.values()) < least:
            raise InvalidEnsemble(f"members: found {found} {what}; allowed: the same number for all, at least {least}")
        return next(iter(found.values()))


def build_pool(pool: Pool, parts: Parts) -> Fusion:
    """Build an opinion pool."""
    _count_answers(parts)
    sharpness = parts.fitted.sharpness if parts.fitted else 0.0
    return PoolFusion(pool, parts.kinds, parts.temperatures, is_multi_label=parts.is_multi_label, sharpness=sharpness)


def build_stacking(parts: Parts) -> Fusion:
    """Build a stacking head from its fitted state."""
    outputs = _count_answers(parts)
    assert parts.fitted is not None
    head = StackingHead(len(parts.kinds), outputs, parts.fitted.hidden)
    expected = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in parts.fitted.tensors.items()}
    if found != expected:
        raise InvalidEnsemble(f"fusion.fitted: the head's tensors are {found}; allowed: {expected}; {REMEDY}")
    head.load_state_dict(dict(parts.fitted.tensors))
    return StackingFusion(head, parts.kinds, parts.temperatures, is_multi_label=parts.is_multi_label)


def build_concatenation(parts: Parts) -> Fusion:
    """Build a concatenation, with its projection if there is one."""
    sizes = parts.sizes("features")
    projection = read_projection(parts.folder, parts.spec.fusion.projection, sum(sizes.values()))
    return ConcatenationFusion(tuple(sizes), projection)


def _count_answers(parts: Parts) -> int:
    return parts.same_size("labels", 1) if parts.is_multi_label else parts.same_size("classes", 2)
