"""The intake: checks requests and makes the members' samples of them. It needs the spec and the inputs, and no models."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, InvalidOption, MissingInput, UnknownEnsemble, UnknownInput, UnknownMember, quote
from ..spec import EnsembleSpec
from ..types import InferRequest, Policy, Samples
from .kind import InputKind


@dataclass(frozen=True, slots=True)
class FedCount:
    """What the host knows of a fed input: `samples_per_sample` of it for each sample of the member with the index `feeder`."""

    name: str
    feeder: int
    samples_per_sample: int


MemberInputs = Sequence[InputKind[Any] | FedCount]
"""One member's inputs, in the order in which it is called with them."""


class Intake:
    """What stands at an ensemble's door."""

    def __init__(self, spec: EnsembleSpec, inputs: Sequence[MemberInputs]) -> None:
        """Take the inputs of each member, in the members' order."""
        self._spec = spec
        self._inputs = [tuple(kinds) for kinds in inputs]
        self._names = list(spec.members)
        self._voters = [name for name, member in spec.members.items() if member.output.kind != "features"]
        self._default_policy = Policy[spec.policy.upper()]
        self._takers: dict[str, list[tuple[int, InputKind[Any]]]] = {name: [] for _, name, _ in spec.walk_inputs()}
        for index, kinds in enumerate(inputs):
            for kind in kinds:
                if not isinstance(kind, FedCount):
                    self._takers[kind.name].append((index, kind))
        self._at_least = {
            name: (max(kind.at_least[0] for _, kind in takers), max(kind.at_least[1] for _, kind in takers))
            for name, takers in self._takers.items()
        }
        """By input name, how many pixels the most demanding member needs to see of a picture: height and width."""
        self._required = {name for _, name, input_spec in spec.walk_inputs() if input_spec.required}

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs that a request may carry."""
        return list(self._takers)

    def is_required(self, input_name: str, policy: Policy, needs: Collection[int]) -> bool:
        """Whether a request under `policy` must carry the input; the fusion `needs` the members of these indexes."""
        return (
            policy is Policy.REQUIRE_ALL
            or input_name in self._required
            or any(index in needs for index, _ in self._takers[input_name])
        )

    def check_served(self, name: str, version: int) -> None:
        """Raise UnknownEnsemble unless `name` and `version` mean this ensemble; empty and 0 do."""
        spec = self._spec
        if name not in ("", spec.name) or version not in (0, spec.version):
            raise UnknownEnsemble(
                f"ensemble {quote(name)} version {version} is not served; allowed: {spec.name!r} version {spec.version}, "
                "or empty and 0"
            )

    def check(self, request: InferRequest, needs: Collection[int], classes: int) -> Policy:
        """Check a request against the ensemble, without looking into its inputs; give the policy that it is answered under.

        The fusion `needs` the members of these indexes; an answer chooses among so many `classes`, 0 where the task knows none.
        """
        self.check_served(request.ensemble, request.version)
        policy = request.policy or self._default_policy
        if request.inputs.keys() != self._takers.keys():
            self._check_names(request.inputs, policy, needs)
        if not 0 <= request.top_k <= classes:
            allowed = f"0 to {classes}" if classes else "0: the task has no classes"
            raise InvalidOption(f"options.top_k: found {request.top_k}; allowed: {allowed}")
        return policy

    def _check_names(self, found: Collection[str], policy: Policy, needs: Collection[int]) -> None:
        """Refuse inputs that nobody takes, and requests without those that are needed."""
        for name in found:
            if name not in self._takers:
                raise UnknownInput(f"inputs[{quote(name)}]: no such input; allowed: {self.input_names}")
        needed = [name for name in self._takers if name not in found and self.is_required(name, policy, needs)]
        if needed:
            raise MissingInput(f"inputs: {needed} missing; required: they are needed under policy {policy.name}")
        if not found:
            raise MissingInput(f"inputs: none found; required: at least one of {self.input_names}")

    def row_weights(self, overrides: Mapping[str, float]) -> NDArray[np.float64] | None:
        """Give a row's weights, float64 [members], summing to 1, or None where it brings none and the fusion's own count."""
        if not overrides:
            return None
        for name, weight in overrides.items():
            if name not in self._names:
                raise UnknownMember(f"options.fusion_weights[{quote(name)}]: no such member; allowed: {self._names}")
            if name not in self._voters:
                raise InvalidOption(
                    f"options.fusion_weights[{quote(name)}]: its output is of kind 'features'; "
                    f"allowed: members that vote, {self._voters}"
                )
            if not 0 <= weight <= 1e9:  # also refuses NaN
                raise InvalidOption(f"options.fusion_weights[{quote(name)}]: found {weight}; allowed: 0 to 1e9")
        weights = np.array([overrides.get(name, 0.0) for name in self._names])
        if not weights.sum() > 0:
            raise InvalidOption("options.fusion_weights: all are 0; allowed: at least one above 0")
        normalised: NDArray[np.float64] = weights / weights.sum()
        return normalised

    def is_light(self, request: InferRequest) -> bool:
        """Whether `prepare` takes so little that the event loop may do it: there is nothing to decode."""
        for name, value in request.inputs.items():
            for _, kind in self._takers[name]:
                if not kind.is_light(value):
                    return False
        return True

    def prepare(self, request: InferRequest) -> dict[int, Samples]:
        """Decode a request's inputs, each once, and make every member's samples; raises InvalidInput. CPU pool.

        A member takes part only if all its inputs are there.
        """
        decoded = {name: self._takers[name][0][1].decode(value, self._at_least[name]) for name, value in request.inputs.items()}
        samples: dict[int, Samples] = {}
        for index, kinds in enumerate(self._inputs):
            parts: dict[str, Samples] = {}
            for kind in kinds:
                if kind.name in decoded:
                    parts[kind.name] = kind.prepare(decoded[kind.name])  # type: ignore[union-attr]  # no request has a fed input
                elif isinstance(kind, FedCount) and kind.feeder in samples:
                    # What it computes on comes from its feeder, on the device; here it only counts.
                    count = kind.samples_per_sample * len(samples[kind.feeder][0])
                    parts[kind.name] = (np.empty((count, 0), dtype=np.float32),)
            if len(parts) == len(kinds):
                samples[index] = self._join(index, parts)
        if not samples:
            raise MissingInput(f"inputs: no member has all its inputs; found {sorted(request.inputs)}, allowed: all of a member's")
        return samples

    def _join(self, index: int, parts: Mapping[str, Samples]) -> Samples:
        """Put a member's inputs next to each other; raises InvalidInput where some have more samples than others."""
        if len(parts) > 1 and len({len(part[0]) for part in parts.values()}) > 1:
            counts = {name: len(part[0]) for name, part in parts.items()}
            raise InvalidInput(f"inputs: found {counts} samples for member {self._names[index]!r}; allowed: as many of each")
        return tuple(itertools.chain.from_iterable(parts.values()))
