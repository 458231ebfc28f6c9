"""Members: one model each, with the inputs it takes and the slots of its lane."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..device import Device
from ..errors import InvalidEnsemble
from ..inputs import InputKind, Staging
from ..loaders import LoadedModel
from ..rows import Samples
from ..spec import MemberSpec
from .bucket import MIN_TOKENS, Bucket, doublings, round_up
from .slot import SLOTS_PER_LANE, Slot


class Member:
    """One model of the ensemble, ready to compute on the device."""

    def __init__(
        self, index: int, name: str, spec: MemberSpec, model: LoadedModel, inputs: Sequence[InputKind[Any]], *, max_samples: int,
        is_deterministic: bool, device: Device,
    ) -> None:  # fmt: skip
        """Give the member its slots; `is_deterministic` pads every flight to the one largest bucket."""
        self.index = index
        self.name = name
        self.spec = spec
        self.model = model
        self.inputs = tuple(inputs)
        self.stagings: tuple[Staging, ...] = tuple(staging for kind in self.inputs for staging in kind.staging)
        self.max_samples = max_samples
        self.is_deterministic = is_deterministic
        self.slots = [Slot(number, device, self.stagings, max_samples) for number in range(SLOTS_PER_LANE)]
        self.row_sizes: tuple[int, ...] = ()
        """The sample counts that it is captured at, and so padded to; empty where it runs as many as there are."""
        self.why_not_captured = "" if device.can_capture else "the device has no graphs"
        self.capture_bytes = 0
        self.token_sizes = self._find_token_sizes()
        self.samples_per_row = 1
        """The most samples that one row may give it."""
        self.output_shape: tuple[int, ...] = ()
        """The shape of one sample's output; known once the member has been probed."""

    def _find_token_sizes(self) -> tuple[int, ...]:
        longest = max((staging.shape[0] for staging in self.stagings if staging.is_ragged), default=0)
        # Without a mask padding would change the answers, so such a member always sees the full length it was made for.
        takes_mask = all(getattr(spec, "mask", True) for spec in self.spec.input.values())
        return doublings(MIN_TOKENS, longest) if longest > MIN_TOKENS and takes_mask and not self.is_deterministic else (longest,)

    def bucket(self, samples: Sequence[Samples]) -> Bucket:
        """Find the size at which these samples run: exact in samples, rounded up in tokens; the largest if deterministic."""
        if self.is_deterministic:
            return Bucket(self.max_samples, self.token_sizes[-1])
        tokens = 0
        for position, staging in enumerate(self.stagings):
            if staging.is_ragged:
                tokens = max(tokens, *(sample[position].shape[1] for sample in samples))
        count = sum(len(sample[0]) for sample in samples)
        return Bucket(round_up(count, self.row_sizes) if self.row_sizes else count, round_up(tokens, self.token_sizes))

    def example(self, seed: int, tokens: int) -> Samples:
        """Make one sample of random content, as many tokens long as asked, for probing and warm-up."""
        return tuple(array for kind in self.inputs for array in kind.example(seed, min(tokens, kind.max_tokens)))

    def compute(self, slot: Slot, bucket: Bucket, *, is_checked: bool = False) -> Tensor:
        """Compute the member on what `slot` holds: float32 [samples, ...]. Runs on the member's lane.

        `is_checked` has the model check its arguments, where it can, which takes longer.
        """
        module = self.model.checked if is_checked and self.model.checked else self.model.module
        staged = slot.staged(bucket)
        arguments: list[Tensor] = []
        for kind in self.inputs:
            count = len(kind.staging)
            arguments.extend(kind.arguments(staged[:count]))
            staged = staged[count:]
        return self._select(module(*arguments)).float()

    def _select(self, outputs: object) -> Tensor:
        """Pick the output that counts: by position in a tuple, by name in a mapping or as an attribute."""
        select = self.spec.output.select
        found: object = outputs
        if isinstance(select, str):
            found = outputs.get(select) if isinstance(outputs, Mapping) else getattr(outputs, select, None)
        elif isinstance(outputs, tuple | list):
            found = outputs[select] if -len(outputs) <= select < len(outputs) else None
        elif isinstance(outputs, Mapping):
            found = list(outputs.values())[select] if select < len(outputs) else None
        if not isinstance(found, Tensor):
            raise InvalidEnsemble(
                f"members.{self.name}.output.select: {select!r} finds no tensor; found outputs {_outline(outputs)}"
            )
        return found


def _outline(outputs: object) -> str:
    if isinstance(outputs, Mapping):
        return str(sorted(str(key) for key in outputs))
    if isinstance(outputs, tuple | list):
        return f"{len(outputs)} of type {[type(output).__name__ for output in outputs]}"
    return type(outputs).__name__
