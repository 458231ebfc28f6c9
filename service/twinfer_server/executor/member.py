"""Members: one model each, with the inputs it takes and the slots of its lane."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..device import Device
from ..inputs import FedInput, Feed, InputKind, Staging
from ..loaders import LoadedModel
from ..precision import CalibrationSamples, Converted, convert
from ..spec import MemberSpec
from ..types import Samples
from .bucket import MIN_TOKENS, Bucket, doublings, round_up
from .output import read_output, select_output
from .slot import SLOTS_PER_LANE, Slot


class Member:
    """One model of the ensemble, ready to compute on the device."""

    def __init__(
        self, index: int, name: str, spec: MemberSpec, model: LoadedModel, inputs: Sequence[InputKind[Any] | FedInput], *,
        max_batch_size: int, taps: Sequence[int | str] = (), is_deterministic: bool, device: Device,
    ) -> None:  # fmt: skip
        """Give the member its slots; `is_deterministic` pads every flight to the one largest bucket.

        `taps` select further outputs, beside the one that counts, for members that are fed with them.
        """
        self.index = index
        self.device = device
        """Where it computes: the ensemble's device, or another GPU."""
        self.name = name
        self.spec = spec
        self.converted = Converted(model)
        """The model as it computes: as it was loaded, or at another precision."""
        self.inputs = tuple(inputs)
        self.stagings: tuple[Staging, ...] = tuple(staging for kind in self.inputs for staging in kind.staging)
        self.request_inputs = tuple(kind for kind in inputs if not isinstance(kind, FedInput))
        self.fed_inputs = tuple(kind for kind in inputs if isinstance(kind, FedInput))
        self.is_voter = spec.output.kind != "features"
        """Whether its output takes part in the fusion, and does not only feed others."""
        self.taps = tuple(taps)
        self.feeders = tuple(dict.fromkeys(kind.feeder for kind in self.fed_inputs))
        """The indexes of the members that feed it; they stand before it."""
        fixed = max((kind.samples_per_sample for kind in self.fed_inputs), default=1)
        self.samples_per_row = max(fixed, *(getattr(kind, "max_samples", 1) for kind in inputs))
        """The most samples that one row may give it."""
        self.has_fixed_samples = self.samples_per_row == fixed
        """Whether every row gives it just as many."""
        self.max_samples = (
            max_batch_size * self.samples_per_row if self.has_fixed_samples else max(max_batch_size, self.samples_per_row)
        )
        self.is_deterministic = is_deterministic
        self.slots = [Slot(number, device, self.stagings, self.max_samples) for number in range(SLOTS_PER_LANE)]
        self.row_sizes: tuple[int, ...] = ()
        """The sample counts that it is captured at, and so padded to; empty where it runs as many as there are."""
        self.why_not_captured = "" if device.can_capture else "the device has no graphs"
        self.cuda_graph_bytes = 0
        self.shared_bytes = 0
        """How much of its parameters and buffers lies where an earlier member's do."""
        self.token_sizes = self._find_token_sizes()
        self.output_shape: tuple[int, ...] = ()
        """The shape of one sample's output; known once the member has been probed."""
        self.tap_shapes: tuple[tuple[int, ...], ...] = ()

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

    @property
    def model(self) -> LoadedModel:
        """The model as it computes."""
        return self.converted.model

    def convert(self, samples: CalibrationSamples) -> None:
        """Convert the model to the spec's precision and acceleration; raises InvalidEnsemble. Before the first flight."""
        self.converted = convert(self.spec, self.model, samples, self.device.torch_device, f"members.{self.name}")

    def example(self, seed: int, tokens: int) -> Samples:
        """Make one sample of random content, as many tokens long as asked, for probing and warm-up."""
        return tuple(array for kind in self.inputs for array in kind.example(seed, min(tokens, kind.max_tokens)))

    def compute(self, slot: Slot, bucket: Bucket, *, is_checked: bool = False) -> Tensor:
        """Compute the member on what `slot` holds: float32 [samples, ...]. Runs on the member's lane.

        `is_checked` has the model check its arguments, where it can, which takes longer.
        """
        return self.compute_all(slot, bucket, is_checked=is_checked)[0]

    def compute_all(self, slot: Slot, bucket: Bucket, *, is_checked: bool = False) -> list[Tensor]:
        """Compute the member's output that counts, and behind it those of `taps`: float32 [samples, ...] each."""
        module = self.model.checked if is_checked and self.model.checked else self.model.module
        return self.read(module(*self.arguments(slot, bucket)))

    def arguments(self, slot: Slot, bucket: Bucket) -> tuple[Tensor, ...]:
        """Give what the model is called with for what `slot` holds."""
        staged = slot.staged(bucket)
        arguments: list[Tensor] = []
        for kind in self.inputs:
            count = len(kind.staging)
            arguments.extend(kind.arguments(staged[:count]))
            staged = staged[count:]
        return tuple(arguments)

    def read(self, outputs: object) -> list[Tensor]:
        """Find, in what the model answers, the output that counts and those of `taps`: float32 [samples, ...] each."""
        key = f"members.{self.name}.output.select"
        taps = [select_output(key, outputs, select).float() for select in self.taps]
        return [read_output(self.name, self.spec, outputs), *taps]

    def feed(self, slot: Slot, bucket: Bucket, outputs: Sequence[Tensor], samples: Tensor | None = None) -> Feed:
        """Give what members are fed with, of what `compute_all` has made of `slot`, in the order of `samples` (None: as it is)."""
        images = [buffer for buffer, staging in zip(slot.staged(bucket), self.stagings, strict=True) if staging.name == "pixels"]
        picked = [*outputs, *images] if samples is None else [values.index_select(0, samples) for values in (*outputs, *images)]
        taps = dict(zip(self.taps, picked[1 : 1 + len(self.taps)], strict=True))
        return Feed(picked[0], taps, picked[-1] if len(images) == 1 else None)

    def take_feed(self, slot: Slot, feeder: int, feed: Feed, total: int) -> None:
        """Copy what the member with the index `feeder` gave into `slot`, `total` samples; on the device, on this member's lane."""
        position = 0
        for kind in self.inputs:
            if isinstance(kind, FedInput) and kind.feeder == feeder:
                slot.receive(position, kind.take(feed)[:total])
            position += len(kind.staging)
