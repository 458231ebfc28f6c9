"""The description of an ensemble: what is served, as the contract's message, for callers, operators and `twinfer validate`."""

from collections.abc import Iterator, Sequence
from typing import Any

from twinfer.v1 import ensemble_pb2 as pb

from ..engine import BreakerReading, CircuitBreakers
from ..executor import Ensemble, FusionVersion, Member
from ..fusion import METHODS
from ..inputs import InputKind
from ..settings import ServerSettings
from ..spec import TextInputSpec
from ..types import Policy
from .codec import make_duration
from .tensors import NAME_OF_DTYPE

Kinds = Sequence[InputKind[Any]]


def describe(ensemble: Ensemble, settings: ServerSettings, breakers: CircuitBreakers | None = None) -> pb.Ensemble:
    """Describe an ensemble; without `breakers` as if all were closed. What is measured is there once the ensemble is warm."""
    spec = ensemble.spec
    readings = [breaker.reading for breaker in breakers.breakers] if breakers else [BreakerReading()] * len(ensemble.members)
    return pb.Ensemble(
        name=spec.name,
        version=spec.version,
        task=f"TASK_{spec.task.upper()}",
        labels=ensemble.labels,
        inputs=_describe_inputs(ensemble),
        members=[_describe_member(ensemble, *each) for each in zip(ensemble.members, readings, strict=True)],
        fusion=_describe_fusion(ensemble.fusion),
        cascade=pb.Cascade(first=spec.cascade.first, gate=ensemble.fusion.gate) if spec.cascade else None,
        policy=spec.policy,
        limits=_describe_limits(ensemble, settings),
        execution=ensemble.execution,
        output_shape=_find_fused_shape(ensemble),
        compared_input=find_compared_input(ensemble),
    )


def find_compared_input(ensemble: Ensemble) -> str:
    """Find the input that is compared with the query: the other member's, or its upstream's; empty for other tasks."""
    if ensemble.spec.task != "similarity":
        return ""
    query = ensemble.spec.fusion.query or next(iter(ensemble.spec.members))
    fused = [ensemble.members[index] for index in ensemble.fusion.fusion.fused_members]
    member = next(member for member in fused if member.name != query)
    while not member.request_inputs:
        member = ensemble.members[member.upstream[0]]
    return member.request_inputs[0].name


def _describe_inputs(ensemble: Ensemble) -> Iterator[pb.InputSpec]:
    kinds: dict[str, dict[str, InputKind[Any]]] = {}
    specs = {name: spec for _, name, spec in ensemble.spec.walk_inputs()}
    for member in ensemble.members:
        for kind in member.request_inputs:
            kinds.setdefault(kind.name, {})[member.name] = kind
    for name, by_member in kinds.items():
        first, *_ = takes = list(by_member.values())
        spec = specs[name]
        yield pb.InputSpec(
            name=name,
            kind=spec.kind,
            dtype=f"DATA_TYPE_{NAME_OF_DTYPE[first.tensor_dtype]}",
            shape=first.tensor_shape,
            members=by_member,
            optional=not ensemble.is_required(name, Policy[ensemble.spec.policy.upper()]),
            max_tokens=spec.max_tokens if isinstance(spec, TextInputSpec) else 0,
            max_samples=min(kind.max_samples for kind in takes),
            pair=isinstance(spec, TextInputSpec) and spec.pair,
            always_required=ensemble.is_required(name, Policy.BEST_EFFORT),
            native_shape=_find_native_shape(takes),
        )


def _find_native_shape(kinds: Kinds) -> tuple[int, ...]:
    """Find the shape of a ready tensor that none of the members resizes."""
    shapes = [kind.buffers[0].shape if kind.min_size != (0, 0) else kind.tensor_shape for kind in kinds]
    if len({len(shape) for shape in shapes}) > 1:  # ready ids, with token types and without: one tensor cannot be both
        return kinds[0].tensor_shape
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))


def _describe_member(ensemble: Ensemble, member: Member, breaker: BreakerReading) -> pb.Member:
    memory, measured = ensemble.memory.get(member.name), ensemble.latencies.measured if ensemble.latencies else {}
    return pb.Member(
        name=member.name,
        loader=member.model.loader,
        precision=member.precision,
        acceleration=member.spec.acceleration,
        largest_error=member.converted.largest_error,
        device=str(member.device.torch_device),
        inputs=[kind.name for kind in member.inputs],
        output=member.spec.output.kind,
        output_shape=_find_output_shape(member),
        parameter_bytes=member.model.parameter_bytes,
        no_cuda_graph_reason=member.no_graph_reason,
        cuda_graph_bytes=member.graph_bytes,
        breaker_state=int(breaker.state),  # type: ignore[arg-type]  # the numbers are the contract's own
        breaker_reason=breaker.reason,
        staging_bytes=memory.staging if memory else 0,
        activation_bytes=memory.activations if memory else 0,
        shared_bytes=member.shared_bytes,
        upstream=[ensemble.members[index].name for index in member.upstream],
        solo_latencies=[
            pb.SoloLatency(samples=bucket.samples, tokens=bucket.tokens, latency=make_duration(seconds))
            for bucket, seconds in sorted(measured.get(member.index, {}).items())
        ],
    )


def _find_output_shape(member: Member) -> tuple[int, ...]:
    if member.spec.output.kind == "detections":
        return (-1, 6)
    return (-1, *member.output_shape) if member.samples_per_request > 1 else member.output_shape


def _find_fused_shape(ensemble: Ensemble) -> tuple[int, ...]:
    first = ensemble.members[ensemble.fusion.fusion.fused_members[0]]
    shapes = {"embedding": (-1,), "similarity": (-1, 2), "detection": (-1, 6)}
    return shapes.get(ensemble.spec.task, first.output_shape)


def _describe_fusion(version: FusionVersion) -> pb.Fusion:
    fusion, members = version.spec.fusion, list(version.spec.members)
    takes = METHODS[fusion.method].takes
    fused = [members[index] for index in version.fusion.fused_members]
    weights = dict(zip(members, version.weights.tolist(), strict=True))
    return pb.Fusion(
        method=fusion.method,
        weights={name: weights[name] for name in fused} if "weights" in takes else {},
        temperatures={name: fusion.temperatures.get(name, 1.0) for name in fused} if "temperatures" in takes else {},
        version=version.number,
        fitted=fusion.fitted is not None,
    )


def _describe_limits(ensemble: Ensemble, settings: ServerSettings) -> pb.Limits:
    return pb.Limits(
        max_message_bytes=settings.max_message_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_text_bytes=settings.max_text_bytes,
        max_batch_size=ensemble.spec.batching.max_batch_size,
        max_in_flight_requests=settings.max_in_flight_requests,
        max_batch_requests=settings.batch_requests,
        default_timeout=make_duration(settings.default_timeout_seconds),
    )
