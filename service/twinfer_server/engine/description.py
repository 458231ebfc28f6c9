"""What is served, as plain facts: what callers are told about the ensemble and its limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..executor import BucketTimes, Ensemble, FusionVersion, Member
from ..fusion import METHODS
from ..inputs import InputKind
from ..settings import ServerSettings
from ..types import Policy
from .breaker import SwitchState


@dataclass(frozen=True, slots=True)
class InputDescription:
    """One input of a request; a size of -1 in `shape` means any.

    `member_shape` is that of the ready tensor that members take as it is, without resizing; -1 where they differ, or any is fine.
    It `is_needed` if even a BEST_EFFORT answer needs it; it `is_optional` under the ensemble's own policy.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    member_shape: tuple[int, ...]
    members: tuple[str, ...]
    is_needed: bool
    is_optional: bool
    max_tokens: int
    max_samples: int
    is_pair: bool


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """One member."""

    name: str
    loader: str
    precision: str
    acceleration: str
    largest_error: float
    device: str
    inputs: tuple[str, ...]
    output: str
    output_shape: tuple[int, ...]
    """Of its prediction for one row; -1 where it depends on the request, or on how members are fused."""
    parameter_bytes: int
    no_cuda_graph_reason: str
    cuda_graph_bytes: int
    staging_bytes: int
    activation_bytes: int
    shared_bytes: int
    upstream: tuple[str, ...]
    switch: SwitchState


@dataclass(frozen=True, slots=True)
class FusionDescription:
    """The version of the fusion that is in use; weights and temperatures by member name, empty where it takes none."""

    method: str
    weights: Mapping[str, float]
    temperatures: Mapping[str, float]
    version: int
    is_fitted: bool


@dataclass(frozen=True, slots=True)
class CascadeDescription:
    """The member that answers first, and the confidence from which its answer stands alone."""

    first: str
    gate: float


@dataclass(frozen=True, slots=True)
class Description:
    """An ensemble, its limits and its measured plans."""

    name: str
    version: int
    task: str
    labels: tuple[str, ...]
    policy: str
    inputs: tuple[InputDescription, ...]
    members: tuple[MemberDescription, ...]
    fusion: FusionDescription
    cascade: CascadeDescription | None
    fused_shape: tuple[int, ...]
    """Of the fused prediction for one row; -1 where it depends on the request, or on how members are fused."""
    compared: str
    """The input that brings what a similarity compares with; empty for other tasks."""
    limits: ServerSettings
    max_batch_size: int
    times: tuple[BucketTimes, ...]


def describe(ensemble: Ensemble, settings: ServerSettings, switches: Sequence[SwitchState] = ()) -> Description:
    """Gather the facts about a warm ensemble; `switches` has one state for each member, or none where all are on."""
    switches = switches or [SwitchState() for _ in ensemble.members]
    spec, version = ensemble.spec, ensemble.crew.version
    return Description(
        name=spec.name,
        version=spec.version,
        task=spec.task,
        labels=ensemble.labels,
        policy=spec.policy,
        inputs=_describe_inputs(ensemble),
        members=tuple(
            _describe_member(ensemble, member, switch) for member, switch in zip(ensemble.members, switches, strict=True)
        ),
        fusion=_describe_fusion(version),
        cascade=CascadeDescription(spec.cascade.first, version.gate) if spec.cascade else None,
        fused_shape=_find_fused_shape(ensemble),
        compared=_find_compared(ensemble),
        limits=settings,
        max_batch_size=spec.batching.max_batch_size,
        times=ensemble.times.measured if ensemble.times else (),
    )


def _describe_inputs(ensemble: Ensemble) -> tuple[InputDescription, ...]:
    spec = ensemble.spec
    takers: dict[str, dict[str, InputKind[Any]]] = {}
    for member in ensemble.members:
        for kind in member.request_inputs:
            takers.setdefault(kind.name, {})[member.name] = kind
    input_kinds = spec.input_kinds()
    return tuple(
        InputDescription(
            name=name,
            kind=input_kinds[name],
            dtype=takes[0].tensor_dtype,
            shape=takes[0].tensor_shape,
            member_shape=_find_member_shape(takes),
            members=tuple(takers[name]),
            is_needed=ensemble.is_required(name, Policy.BEST_EFFORT),
            is_optional=not ensemble.is_required(name, Policy[spec.policy.upper()]),
            max_tokens=takes[0].max_tokens,
            max_samples=min(kind.max_samples for kind in takes),
            is_pair=any(kind.is_pair for kind in takes),
        )
        for name, takes in ((name, list(by_member.values())) for name, by_member in takers.items())
    )


def _describe_member(ensemble: Ensemble, member: Member, switch: SwitchState) -> MemberDescription:
    memory = ensemble.memory[member.name] if ensemble.memory else None
    return MemberDescription(
        name=member.name,
        loader=member.model.loader,
        precision=member.spec.precision,
        acceleration=member.spec.acceleration,
        largest_error=member.converted.largest_error,
        device=str(member.device.torch_device),
        inputs=tuple(kind.name for kind in member.inputs),
        output=member.spec.output.kind,
        output_shape=_find_output_shape(member),
        parameter_bytes=member.model.parameter_bytes,
        no_cuda_graph_reason=member.why_not_captured,
        cuda_graph_bytes=member.cuda_graph_bytes,
        staging_bytes=memory.staging if memory else 0,
        activation_bytes=memory.activations if memory else 0,
        shared_bytes=member.shared_bytes,
        upstream=tuple(ensemble.members[feeder].name for feeder in member.feeders),
        switch=switch,
    )


def _describe_fusion(version: FusionVersion) -> FusionDescription:
    fusion, members = version.spec.fusion, list(version.spec.members)
    takes = METHODS[fusion.method].takes
    voters = [members[index] for index in version.fusion.voters]
    weights = dict(zip(members, version.weights.tolist(), strict=True))
    return FusionDescription(
        method=fusion.method,
        weights={name: weights[name] for name in voters} if "weights" in takes else {},
        temperatures={name: fusion.temperatures.get(name, 1.0) for name in voters} if "temperatures" in takes else {},
        version=version.number,
        is_fitted=fusion.fitted is not None,
    )


def _find_member_shape(takes: Sequence[InputKind[Any]]) -> tuple[int, ...]:
    """Find the shape of a ready tensor that none of the members resizes."""
    shapes = [kind.staging[0].shape if kind.at_least != (0, 0) else kind.tensor_shape for kind in takes]
    if len({len(shape) for shape in shapes}) > 1:  # ready ids, with token types and without: one tensor cannot be both
        return takes[0].tensor_shape
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))


def _find_output_shape(member: Member) -> tuple[int, ...]:
    if member.spec.output.kind == "detections":
        return (-1, 6)
    return (-1, *member.output_shape) if member.samples_per_row > 1 else member.output_shape


def _find_fused_shape(ensemble: Ensemble) -> tuple[int, ...]:
    voter = ensemble.members[ensemble.crew.version.fusion.voters[0]]
    shapes = {"embedding": (-1,), "similarity": (-1, 2), "detection": (-1, 6)}
    return shapes.get(ensemble.spec.task, voter.output_shape)


def _find_compared(ensemble: Ensemble) -> str:
    """Find the input that brings what is compared with the query: that of the other member, or of whoever feeds it."""
    if ensemble.spec.task != "similarity":
        return ""
    query = ensemble.spec.fusion.query or next(iter(ensemble.spec.members))
    voters = [ensemble.members[index] for index in ensemble.crew.version.fusion.voters]
    member = next(member for member in voters if member.name != query)
    while not member.request_inputs:
        member = ensemble.members[member.feeders[0]]
    return member.request_inputs[0].name
