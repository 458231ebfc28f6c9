"""The ensemble at work: members and fusion, loaded, probed and warm; it boards flights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..device import Device, Event, Lane
from ..inputs import FedCount, FedInput, Intake, MemberInputs
from ..spec import EnsembleSpec
from ..types import InferRequest, Policy, Request, Samples
from .bucket import Bucket, round_up
from .capture import CapturedFusion, FlightCapture
from .cascade import Cascade
from .crew import Crew, FusionBuilder
from .execution import make_plans
from .flight import Flight, LeftOut
from .member import Member
from .memory import MemberMemory
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
        self.intake = Intake(spec, [_list_inputs(member) for member in crew.members])
        self._fusion_lanes: dict[Lane, Event | None] = {self.plans["streams"].fusion: None}
        """The plan `lanes` has several, each with the landing of its last flight; one for each flight in the air, as it comes."""

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, in the order in which answers list them."""
        return self.crew.members

    @property
    def flight_bytes(self) -> int:
        """The device memory that the captures of whole flights take."""
        return sum(capture.device_bytes for capture in self.flight_captures.values())

    @property
    def classes(self) -> int:
        """How many classes, labels or texts of its own an answer chooses among; 0 where the task knows none."""
        if self.spec.task in ("classification", "multi_label"):
            return self.members[self.crew.version.fusion.fused_members[0]].output_shape[0]
        return self.fusion_builder.texts if self.spec.task == "similarity" else 0

    def is_required(self, input_name: str, policy: Policy) -> bool:
        """Whether a request under `policy` must carry the input, as members are fused now."""
        return self.intake.is_required(input_name, policy, self.crew.version.fusion.needs)

    def check(self, request: InferRequest) -> Policy:
        """Check a request, without looking into its inputs; give the policy that it is answered under."""
        return self.intake.check(request, self.crew.version.fusion.needs, self.classes)

    def prepare(self, request: InferRequest) -> dict[int, Samples]:
        """Decode a request's inputs, each once, and make every member's samples; raises InvalidInput. CPU pool."""
        return self.intake.prepare(request)

    def first_crew(self, samples: Mapping[int, Samples]) -> tuple[int, ...]:
        """Say which members look at a row first: in a cascade its first one, where the row has input for it, else all."""
        return self.cascade.first_crew(samples) if self.cascade else tuple(samples)

    def board(self, rows: Sequence[Request], slots: Mapping[int, Slot], left_out: LeftOut, execution: str | None = None) -> Flight:
        """Make a flight of `rows`; `slots` has one for each member that takes part, `left_out` says who does not fly for whom."""
        runs: list[Run] = []
        for index, slot in slots.items():
            boarded = [n for n, row in enumerate(rows) if index in row.crew and (n, index) not in left_out]
            if boarded:
                run = Run(self.members[index], slot, boarded, rows, self.device)
                run.feeders = {upstream.member.index: upstream for upstream in runs if upstream.member.index in run.member.feeders}
                runs.append(run)
        tokens = max((run.bucket.tokens for run in runs), default=0)
        name = execution or (self.times.execution(len(rows), tokens) if self.times else "serial")
        capture = self._find_capture(runs, len(rows), tokens) if name == "graph" else None
        if name == "graph" and capture is None:
            name = "streams"
        fly_by = self.plans[name]
        if name == "streams":
            fly_by = replace(fly_by, fusion=self._find_fusion_lane())
        flight = Flight(rows, runs, left_out, fly_by, self.crew, self.device, capture)
        if name == "streams":
            self._fusion_lanes[fly_by.fusion] = flight.landed
        if self.times is not None:
            flight.solo_seconds = [self.times.solo_seconds(name, run.member.index, run.row_bucket) for run in runs]
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
        for execution in self.plans.values():
            for lane in {*execution.members, execution.copy, execution.fusion, *self._fusion_lanes}:
                lane.close()


def _list_inputs(member: Member) -> MemberInputs:
    return [
        FedCount(kind.name, kind.feeder, kind.samples_per_sample) if isinstance(kind, FedInput) else kind for kind in member.inputs
    ]
