"""What an ensemble is: its members, how their outputs become one, and how requests share batches."""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from .files import Fault, FolderFile, Name, Strict
from .members import MemberSpec, RequestInputSpec, TensorInputSpec, UpstreamInputSpec

Task = Literal["classification", "multi_label", "embedding", "similarity", "detection", "tensor"]
Weight = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
Temperature = Annotated[FiniteFloat, Field(ge=0.001, le=1000)]
Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]


class FusionSpec(Strict):
    """How the members' outputs become one; the method is found in the table of `twinfer_server.fusion`."""

    method: str
    weights: dict[Name, Weight] = {}
    """By member; normalised to sum to 1. Empty means equal weights."""
    temperatures: dict[Name, Temperature] = {}
    """By member: its logits are divided by it. A member that is left out has 1."""
    fitted: FolderFile | None = None
    """What `twinfer fit` has written, usually "fusion.safetensors": its head and gate are used, and its weights and
    temperatures where this table has none of its own."""
    k: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Reciprocal rank fusion's constant. Default: 60."""
    projection: FolderFile | None = None
    """A `.safetensors` file with `weight` [out, in] (and `bias` [out]) that the concatenation goes through."""
    query: Name | None = None
    """The member whose embedding is compared with the other's. Default: the first."""
    texts: FolderFile | None = None
    """Texts to compare with where the request brings none, one a line; as many as labels."""
    scale: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """What cosines are multiplied by before they become probabilities. Default: 100."""
    bias: FiniteFloat | None = None
    """What is added to the scaled cosines. Default: 0."""
    activation: Literal["softmax", "sigmoid"] | None = None
    """Whether the compared samples share one probability (as CLIP has it), or have one each (SigLIP). Default: softmax."""
    iou: Probability | None = None
    """From which overlap two boxes of a class are one object. Default: 0.55."""
    min_score: Probability | None = None
    """Below it a member's boxes are not looked at. Default: 0."""
    max_boxes: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The most boxes of an answer. Default: 100."""


class CascadeSpec(Strict):
    """One member first, the others only for the requests of which it is not sure."""

    first: Name
    gate: Probability | None = None
    """The calibrated confidence from which its answer stands alone. Default: what `twinfer fit` has found."""


class BatchingSpec(Strict):
    """How requests share batches."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    max_delay_ms: Annotated[FiniteFloat, Field(ge=0, le=1000)] = 0.5
    """How long a launch may wait for more requests where calls overlap; a lone caller never waits."""


class MemorySpec(Strict):
    """How much of the device's memory the members may take."""

    budget_mb: Annotated[FiniteFloat, Field(gt=0)]
    """In megabytes (10^6 bytes), for parameters, buffers, CUDA graphs and activations; beyond it the server does not start."""


class EnsembleSpec(Strict):
    """An `ensemble.toml`, checked."""

    name: Name
    version: Annotated[int, Field(ge=1, lt=2**63)]
    task: Task
    labels: FolderFile | None = None
    policy: Literal["require_all", "best_effort"] = "require_all"
    execution: Literal["serial", "streams"] | None = None
    """Each member on its own stream, or one after the other on the launch thread. None: streams on CUDA, serial on a CPU."""
    deterministic: bool = False
    """Run every batch at one bucket, so that a request's answer at its index is the same to the bit whatever its neighbours.

    At every index it is so with members that compute all indexes alike; others are named in the log."""
    members: Annotated[dict[Name, MemberSpec], Field(min_length=1, max_length=8)]
    fusion: FusionSpec
    cascade: CascadeSpec | None = None
    batching: BatchingSpec = BatchingSpec()
    memory: MemorySpec | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        named: dict[str, Iterable[str]] = {
            "fusion.weights": self.fusion.weights,
            "fusion.temperatures": self.fusion.temperatures,
            "fusion.query": [self.fusion.query] if self.fusion.query else [],
            "cascade.first": [self.cascade.first] if self.cascade else [],
        }
        for key, names in named.items():
            if unknown := set(names) - set(self.members):
                raise Fault(key, sorted(unknown), f"the members {sorted(self.members)}")
        if self.fusion.weights and not math.fsum(self.fusion.weights.values()) > 0:
            raise Fault("fusion.weights", "all 0", "at least one above 0")
        if self.cascade and (self.task != "classification" or len(self.members) < 2):
            raise Fault("cascade", f"it for task {self.task!r} and {len(self.members)} members", "for classification, 2 or more")
        firsts: dict[str, tuple[str, RequestInputSpec]] = {}
        for member, name, spec in self.walk_inputs():
            other, first = firsts.setdefault(name, (member, spec))
            key, allowed = f"members.{member}.input.{name}", f"as member {other!r} has it, or another name"
            if spec.kind != first.kind:
                raise Fault(f"{key}.kind", repr(spec.kind), f"{first.kind!r}, {allowed}")
            if isinstance(spec, TensorInputSpec) and isinstance(first, TensorInputSpec) and spec.sample != first.sample:
                raise Fault(key, spec.sample, f"{first.sample}, {allowed}")
        return self

    def walk_inputs(self) -> Iterator[tuple[str, str, RequestInputSpec]]:
        """Yield (member name, input name, input spec) of what requests bring, in the order of the file."""
        for member, spec in self.members.items():
            for name, input_spec in spec.input.items():
                if not isinstance(input_spec, UpstreamInputSpec):
                    yield member, name, input_spec

    def input_kinds(self) -> dict[str, str]:
        """Return the kind of every input that a request may bring, by its name."""
        return {name: input_spec.kind for _, name, input_spec in self.walk_inputs()}

    def fused_members(self) -> dict[int, str]:
        """Return the names of the members whose outputs are fused, by index; `features` go to other members only."""
        members = enumerate(self.members.items())
        return {index: name for index, (name, member) in members if member.output.kind != "features"}

    def member_weights(self) -> list[float]:
        """Return the members' weights in the fusion, in their order, summing to 1; 0 for a member that is not fused."""
        weights = self.fusion.weights or dict.fromkeys(self.fused_members().values(), 1.0)
        total = math.fsum(weights.values())
        return [weights.get(name, 0.0) / total for name in self.members]
