"""The ensemble at work: members and fusion, loaded, probed and warm; it checks requests, prepares rows and boards flights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..device import Device, Event, Lane
from ..errors import InvalidInput, InvalidOption, MissingInput, UnknownEnsemble, UnknownInput, UnknownMember, quote
from ..rows import Policy, Request, Row, Samples
from ..spec import EnsembleSpec
from .bucket import Bucket, round_up
from .capture import CapturedFusion, FlightCapture
from .cascade import Cascade
from .crew import Crew, FusionBuilder
from .flight import Flight, LeftOut
from .member import Member
from .memory import MemberMemory
from .plan import make_plans
from .run import Run
from .slot import Slot
from .times import TimesTable


class Ensemble:
    """Members and a fusion on a device. Made by `load_ensemble`; warm once `times` is set."""

    def __init__(
        self, folder: Path, spec: EnsembleSpec, labels: tuple[str, ...], crew: Crew, fusion_builder: FusionBuilder, device: Device
    ) -> None:  # fmt: skip
        """Take over what `load_ensemble` has loaded from `folder` and checked."""
        self.fusion_builder = fusion_builder
        self.folder = folder
        self.spec = spec
        self.labels = labels
        self.crew = crew
        """Replaced as a whole when the fusion changes; every flight keeps the one that it boarded with."""
        self.device = device
        self.default_policy = Policy[spec.policy.upper()]
        self.times: TimesTable | None = None
        self.memory: Mapping[str, MemberMemory] = {}
        """What each member takes, by name; known once the ensemble is warm."""
        self.plans = make_plans(device, crew.members)
        self.flight_captures: dict[tuple[int, Bucket], FlightCapture] = {}
        """By slot number and bucket: whole flights that are faster as one graph."""
        self.captured_fusion = CapturedFusion(crew.version)
        self.cascade = Cascade(list(spec.members).index(spec.cascade.first)) if spec.cascade else None
        self._members_of = {
            name: [(member, kind) for member in crew.members for kind in member.request_inputs if kind.name == name]
            for _, name, _ in spec.walk_inputs()
        }
        self._fusion_lanes: dict[Lane, Event | None] = {self.plans["lanes"].fusion: None}
        """The plan `lanes` has several, each with the landing of its last flight; one for each flight in the air, as it comes."""

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, in the order in which answers list them."""
        return self.crew.members

    @property
    def classes(self) -> int:
        """How many classes, labels or texts of its own an answer chooses among; 0 where the task knows none."""
        if self.spec.task in ("classification", "multi_label"):
            return self.members[self.crew.version.fusion.voters[0]].output_shape[0]
        return self.fusion_builder.texts if self.spec.task == "similarity" else 0

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs that a request may carry."""
        return list(self._members_of)

    def is_required(self, input_name: str, policy: Policy) -> bool:
        """Whether a request under `policy` must carry the input."""
        needs = self.crew.version.fusion.needs
        return (
            policy is Policy.REQUIRE_ALL
            or any(name == input_name and spec.required for _, name, spec in self.spec.walk_inputs())
            or any(member.index in needs for member, _ in self._members_of[input_name])
        )

    def check_served(self, name: str, version: int) -> None:
        """Raise UnknownEnsemble unless `name` and `version` mean this ensemble; empty and 0 do."""
        if name not in ("", self.spec.name) or version not in (0, self.spec.version):
            raise UnknownEnsemble(
                f"ensemble {quote(name)} version {version} is not served; allowed: {self.spec.name!r} version {self.spec.version}, "
                "or empty and 0"
            )

    def check(self, request: Request) -> Policy:
        """Check a request against the ensemble, without looking into its inputs; give the policy that it is answered under."""
        self.check_served(request.ensemble, request.version)
        policy = request.policy or self.default_policy
        for name in request.inputs:
            if name not in self._members_of:
                raise UnknownInput(f"inputs[{quote(name)}]: no such input; allowed: {self.input_names}")
        missing = [name for name in self.input_names if name not in request.inputs]
        needed = [name for name in missing if self.is_required(name, policy)]
        if needed:
            raise MissingInput(f"inputs: {needed} missing; required: they are needed under policy {policy.name}")
        if not request.inputs:
            raise MissingInput(f"inputs: none found; required: at least one of {self.input_names}")
        if not 0 <= request.top_k <= self.classes:
            allowed = f"0 to {self.classes}" if self.classes else "0: the task has no classes"
            raise InvalidOption(f"options.top_k: found {request.top_k}; allowed: {allowed}")
        return policy

    def row_weights(self, overrides: Mapping[str, float]) -> NDArray[np.float64] | None:
        """Give a row's weights, float64 [members], summing to 1, or None where it brings none and the fusion's own count."""
        if not overrides:
            return None
        names = [member.name for member in self.members]
        for name, weight in overrides.items():
            if name not in names:
                raise UnknownMember(f"options.fusion_weights[{quote(name)}]: no such member; allowed: {names}")
            if not 0 <= weight <= 1e9:  # also refuses NaN
                raise InvalidOption(f"options.fusion_weights[{quote(name)}]: found {weight}; allowed: 0 to 1e9")
        weights = np.array([overrides.get(name, 0.0) for name in names])
        if not weights.sum() > 0:
            raise InvalidOption("options.fusion_weights: all are 0; allowed: at least one above 0")
        normalised: NDArray[np.float64] = weights / weights.sum()
        return normalised

    def prepare(self, request: Request) -> dict[int, Samples]:
        """Decode a request's inputs, each once, and make every member's samples; raises InvalidInput. CPU pool.

        A member takes part only if all its inputs are there.
        """
        arrays: dict[int, dict[str, Samples]] = {}
        for name, value in request.inputs.items():
            takers = self._members_of[name]
            needs = [kind.at_least for _, kind in takers]
            decoded = takers[0][1].decode(value, (max(height for height, _ in needs), max(width for _, width in needs)))
            for member, kind in takers:
                arrays.setdefault(member.index, {})[name] = kind.prepare(decoded)
        samples: dict[int, Samples] = {}
        for member in self.members:
            found = arrays.get(member.index, {})
            for fed in member.fed_inputs:
                if fed.feeder in samples:
                    # What it computes on comes from its feeder, on the device; here it only counts.
                    count = fed.samples_per_sample * len(samples[fed.feeder][0])
                    found[fed.name] = (np.empty((count, 0), dtype=np.float32),)
            if all(kind.name in found for kind in member.inputs):
                counts = {kind.name: len(found[kind.name][0]) for kind in member.inputs}
                if len(set(counts.values())) > 1:
                    raise InvalidInput(f"inputs: found {counts} samples for member {member.name!r}; allowed: as many of each")
                samples[member.index] = tuple(array for kind in member.inputs for array in found[kind.name])
        if not samples:
            raise MissingInput(f"inputs: no member has all its inputs; found {sorted(request.inputs)}, allowed: all of a member's")
        return samples

    def first_crew(self, samples: Mapping[int, Samples]) -> tuple[int, ...]:
        """Say which members look at a row first: in a cascade its first one, where the row has input for it, else all."""
        return self.cascade.first_crew(samples) if self.cascade else tuple(samples)

    def board(self, rows: Sequence[Row], slots: Mapping[int, Slot], left_out: LeftOut, plan: str | None = None) -> Flight:
        """Make a flight of `rows`; `slots` has one for each member that takes part, `left_out` says who does not fly for whom."""
        runs: list[Run] = []
        for index, slot in slots.items():
            boarded = [n for n, row in enumerate(rows) if index in row.crew and (n, index) not in left_out]
            if boarded:
                run = Run(self.members[index], slot, boarded, rows, self.device)
                run.feeders = {fed_by.member.index: fed_by for fed_by in runs if fed_by.member.index in run.member.feeders}
                runs.append(run)
        tokens = max((run.bucket.tokens for run in runs), default=0)
        name = plan or (self.times.plan(len(rows), tokens) if self.times else "serial")
        capture = self._find_capture(runs, len(rows), tokens) if name == "graph" else None
        if name == "graph" and capture is None:
            name = "lanes"
        fly_by = self.plans[name]
        if name == "lanes":
            fly_by = replace(fly_by, fusion=self._find_fusion_lane())
        flight = Flight(rows, runs, left_out, fly_by, self.crew, self.device, capture)
        if name == "lanes":
            self._fusion_lanes[fly_by.fusion] = flight.landed
        if self.times is not None:
            flight.alone_seconds = [self.times.alone_seconds(name, run.member.index, run.row_bucket) for run in runs]
        return flight

    def _find_capture(self, runs: Sequence[Run], rows: int, tokens: int) -> FlightCapture | None:
        """Find the whole flight's capture: there is one only for flights of everybody, in slots of the same number."""
        numbers = {run.slot.number for run in runs}
        if len(runs) < len(self.members) or len(numbers) > 1 or not self.flight_captures:
            return None
        row_sizes = sorted({bucket.samples for _, bucket in self.flight_captures})
        token_sizes = sorted({bucket.tokens for _, bucket in self.flight_captures})
        if rows > row_sizes[-1] or tokens > token_sizes[-1]:
            return None
        return self.flight_captures.get((*numbers, Bucket(round_up(rows, row_sizes), round_up(tokens, token_sizes))))  # type: ignore[arg-type]

    def _find_fusion_lane(self) -> Lane:
        """Find a fusion lane on which nobody waits: behind a flight with a stuck member a flight without it could not land."""
        free = (lane for lane, landed in self._fusion_lanes.items() if landed is None or landed.is_done())
        return next(free, None) or self.device.lane("fusion")

    def close(self) -> None:
        """Give the lanes back."""
        for plan in self.plans.values():
            for lane in {*plan.members, plan.copy, plan.fusion, *self._fusion_lanes}:
                lane.close()
