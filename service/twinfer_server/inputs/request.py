"""The request processor: checks requests and makes the members' samples of them, before any model is called."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, InvalidOption, MissingInput, UnknownEnsemble, UnknownInput, UnknownMember, quote
from ..spec import EnsembleSpec
from ..types import InferRequest, Policy, Samples
from .kind import InputKind
from .tensor import UpstreamInput

LIGHT_BYTES = 65536
"""The largest ready tensor that is prepared in less time than a change of threads takes."""


class RequestProcessor:
    """Checks an ensemble's requests and turns their inputs into samples. Safe to call from several threads."""

    def __init__(self, spec: EnsembleSpec, inputs: Sequence[Sequence[InputKind[Any] | UpstreamInput]]) -> None:
        """Take the inputs of each member, in the members' order and in that in which a member is called with them."""
        self._spec = spec
        self._inputs = inputs
        self._names = list(spec.members)
        self._default_policy = Policy[spec.policy.upper()]
        self._takers: dict[str, list[tuple[int, InputKind[Any]]]] = {name: [] for _, name, _ in spec.walk_inputs()}
        """By input name, the members that take it, and how."""
        for index, kinds in enumerate(inputs):
            for kind in kinds:
                if not isinstance(kind, UpstreamInput):
                    self._takers[kind.name].append((index, kind))
        self._min_sizes = {
            name: (max(kind.min_size[0] for _, kind in takers), max(kind.min_size[1] for _, kind in takers))
            for name, takers in self._takers.items()
        }
        """By input name, how much of a picture the most demanding member needs to see."""
        self._required = {name for _, name, input_spec in spec.walk_inputs() if input_spec.required}

    def is_required(self, input_name: str, policy: Policy, needs: Collection[int]) -> bool:
        """Return whether a request under `policy` must carry the input; the fusion `needs` the members of these indexes."""
        takers = {index for index, _ in self._takers[input_name]}
        return policy is Policy.REQUIRE_ALL or input_name in self._required or not takers.isdisjoint(needs)

    def check_served(self, name: str, version: int) -> None:
        """Raise UnknownEnsemble unless `name` and `version` mean this ensemble; empty and 0 do."""
        if name not in ("", self._spec.name) or version not in (0, self._spec.version):
            served = f"{self._spec.name!r} version {self._spec.version}, or empty and 0"
            raise UnknownEnsemble(f"ensemble {quote(name)} version {version} is not served; allowed: {served}")

    def check(self, request: InferRequest, needs: Collection[int], classes: int) -> Policy:
        """Check everything in a request but the content of its inputs; return the policy that it is answered under.

        The fusion `needs` the members of these indexes. `classes` is how many a response chooses among, 0 where the task has none.
        """
        self.check_served(request.ensemble, request.version)
        policy = request.policy or self._default_policy
        for name in request.inputs:
            if name not in self._takers:
                raise UnknownInput(f"inputs[{quote(name)}]: no such input; allowed: {list(self._takers)}")
        missing = [name for name in self._takers if name not in request.inputs]
        needed = [name for name in missing if self.is_required(name, policy, needs)]
        if needed:
            raise MissingInput(f"inputs: {needed} missing; required: they are needed under policy {policy.name}")
        if not request.inputs:
            raise MissingInput(f"inputs: none found; required: at least one of {list(self._takers)}")
        if not 0 <= request.top_k <= classes:
            allowed = f"0 to {classes}" if classes else "0: the task has no classes"
            raise InvalidOption(f"options.top_k: found {request.top_k}; allowed: {allowed}")
        return policy

    def read_weights(self, overrides: Mapping[str, float]) -> NDArray[np.float64] | None:
        """Return a request's own weights, float64 [members], summing to 1; None where it brings none and the fusion's count."""
        if not overrides:
            return None
        fused = [name for name, member in self._spec.members.items() if member.output.kind != "features"]
        for name, weight in overrides.items():
            key = f"options.fusion_weights[{quote(name)}]"
            if name not in self._names:
                raise UnknownMember(f"{key}: no such member; allowed: {self._names}")
            if name not in fused:
                raise InvalidOption(f"{key}: its output is of kind 'features'; allowed: members that are fused, {fused}")
            if not 0 <= weight <= 1e9:  # also refuses NaN
                raise InvalidOption(f"{key}: found {weight}; allowed: 0 to 1e9")
        weights = np.array([overrides.get(name, 0.0) for name in self._names])
        if not weights.any():
            raise InvalidOption("options.fusion_weights: all are 0; allowed: at least one above 0")
        normalised: NDArray[np.float64] = weights / weights.sum()
        return normalised

    def is_light(self, request: InferRequest) -> bool:
        """Return whether `prepare` takes less time than a change of threads: there is nothing to decode or tokenize."""
        return all(
            isinstance(value, np.ndarray) and value.nbytes <= LIGHT_BYTES and not any(self._min_sizes[name])
            for name, value in request.inputs.items()
        )

    def prepare(self, request: InferRequest) -> dict[int, Samples]:
        """Decode a request's inputs, each once, and return the samples by member index; raises InvalidInput.

        A member takes part only if all its inputs are there. What comes from an upstream member has only a count here: its values
        never leave the device.
        """
        decoded = {name: self._takers[name][0][1].decode(value, self._min_sizes[name]) for name, value in request.inputs.items()}
        samples: dict[int, Samples] = {}
        for index, kinds in enumerate(self._inputs):
            parts: dict[str, Samples] = {}
            for kind in kinds:
                if not isinstance(kind, UpstreamInput):
                    if kind.name in decoded:
                        parts[kind.name] = kind.prepare(decoded[kind.name])
                elif kind.upstream in samples:
                    parts[kind.name] = (np.empty((len(samples[kind.upstream][0]), 0), dtype=np.float32),)
            if len(parts) < len(kinds):
                continue
            counts = {name: len(part[0]) for name, part in parts.items()}
            if len(set(counts.values())) > 1:
                raise InvalidInput(f"inputs: found {counts} samples for member {self._names[index]!r}; allowed: as many of each")
            samples[index] = tuple(itertools.chain.from_iterable(parts.values()))
        if not samples:
            raise MissingInput(f"inputs: no member has all its inputs; found {sorted(request.inputs)}, allowed: all of a member's")
        return samples
