"""What an ensemble is: its members, their fusion, and how rows share flights."""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from .files import FolderFile, Name, Strict
from .fusion import CascadeSpec, FusionSpec
from .inputs import FedInputSpec, RequestInputSpec, TensorInputSpec
from .members import MemberSpec

Task = Literal["classification", "multi_label", "embedding", "similarity", "detection", "tensor"]


class BatchingSpec(Strict):
    """How rows share flights."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    max_delay_ms: Annotated[FiniteFloat, Field(ge=0, le=1000)] = 0.0
    """How long a lone row may wait for company when the lanes are idle; 0 launches at once."""


class MemorySpec(Strict):
    """How much of the device's memory the members may take."""

    budget_mb: Annotated[FiniteFloat, Field(gt=0)]
    """In megabytes (10^6 bytes), for parameters, staging, captures and activations; beyond it the server does not start."""


class EnsembleSpec(Strict):
    """An `ensemble.toml`, checked."""

    name: Name
    version: Annotated[int, Field(ge=1, lt=2**63)]
    task: Task
    labels: FolderFile | None = None
    policy: Literal["require_all", "best_effort"] = "require_all"
    execution: Literal["auto", "serial", "streams", "graph"] = "auto"
    deterministic: bool = False
    """Run every flight at one bucket, so that a row's answer at its place is the same to the bit whatever its neighbours.

    At every place it is so with members that compute all places alike; others are named in the log."""
    members: Annotated[dict[Name, MemberSpec], Field(min_length=1, max_length=8)]
    fusion: FusionSpec
    cascade: CascadeSpec | None = None
    batching: BatchingSpec = BatchingSpec()
    memory: MemorySpec | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key, names in self._named_members():
            if unknown := set(names) - set(self.members):
                raise ValueError(f"{key} names {sorted(unknown)}; allowed: the members {sorted(self.members)}")
        if self.fusion.weights and not math.fsum(self.fusion.weights.values()) > 0:
            raise ValueError("fusion.weights are all 0; allowed: at least one above 0")
        if self.cascade and (self.task != "classification" or len(self.members) < 2):
            raise ValueError(f"cascade: found for task {self.task!r} and {len(self.members)} members; allowed: classification, 2")
        firsts: dict[str, tuple[str, RequestInputSpec]] = {}
        for member, name, spec in self.walk_inputs():
            other, first = firsts.setdefault(name, (member, spec))
            key = f"members.{member}.input.{name}"
            if spec.kind != first.kind:
                raise ValueError(f"{key} is of kind {spec.kind!r}; allowed: {first.kind!r}, as another member has it")
            if isinstance(spec, TensorInputSpec) and isinstance(first, TensorInputSpec) and spec.sample != first.sample:
                allowed = f"{first.sample}, as member {other!r} has it, or another name"
                raise ValueError(f"{key} is {spec.sample}; allowed: {allowed}")
        return self

    def _named_members(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield "fusion.weights", self.fusion.weights
        yield "fusion.temperatures", self.fusion.temperatures
        yield "fusion.query", [self.fusion.query] if self.fusion.query else []
        yield "cascade.first", [self.cascade.first] if self.cascade else []

    def walk_inputs(self) -> Iterator[tuple[str, str, RequestInputSpec]]:
        """Yield (member name, input name, input spec) of what requests bring, in the order of the file."""
        for member, spec in self.members.items():
            for name, input_spec in spec.input.items():
                if not isinstance(input_spec, FedInputSpec):
                    yield member, name, input_spec

    def input_kinds(self) -> dict[str, str]:
        """Give the kind of every input that a request may bring, by its name."""
        return {name: input_spec.kind for _, name, input_spec in self.walk_inputs()}

    def member_weights(self) -> list[float]:
        """Give the members' weights in the fusion, in their order, summing to 1; those that only feed others weigh 0."""
        voters = [name for name, member in self.members.items() if member.output.kind != "features"]
        weights = self.fusion.weights or dict.fromkeys(voters, 1.0)
        total = math.fsum(weights.values())
        return [weights.get(name, 0.0) / total for name in self.members]
