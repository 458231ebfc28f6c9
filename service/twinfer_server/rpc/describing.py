"""What is served, as messages."""

from twinfer.v1 import ensemble_pb2

from ..engine import Description, FusionDescription, MemberDescription
from .codec import DTYPE_OF_NAME, make_duration


def write_description(description: Description) -> ensemble_pb2.Ensemble:
    """Turn the facts about an ensemble into their message."""
    limits = description.limits
    cascade = description.cascade
    return ensemble_pb2.Ensemble(
        name=description.name,
        version=description.version,
        task=f"TASK_{description.task.upper()}",
        labels=description.labels,
        inputs=[
            ensemble_pb2.InputSpec(
                name=entry.name,
                kind=entry.kind,
                dtype=DTYPE_OF_NAME[entry.dtype],  # type: ignore[arg-type]
                shape=entry.shape,
                members=entry.members,
                optional=entry.is_optional,
                max_tokens=entry.max_tokens,
                max_samples=entry.max_samples,
                pair=entry.is_pair,
            )
            for entry in description.inputs
        ],
        members=[write_member(member) for member in description.members],
        fusion=write_fusion(description.fusion),
        cascade=ensemble_pb2.Cascade(first=cascade.first, gate=cascade.gate) if cascade else None,
        policy=description.policy,
        limits=ensemble_pb2.Limits(
            max_message_bytes=limits.max_message_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_text_bytes=limits.max_text_bytes,
            max_batch_size=description.max_batch_size,
            max_in_flight_requests=limits.max_in_flight_requests,
            max_batch_requests=limits.batch_rows,
            default_timeout=make_duration(limits.default_timeout_seconds),
        ),
    )


def write_member(member: MemberDescription) -> ensemble_pb2.Member:
    """Turn the facts about a member into their message."""
    return ensemble_pb2.Member(
        name=member.name,
        loader=member.loader,
        precision=member.precision,
        acceleration=member.acceleration,
        largest_error=member.largest_error,
        device=member.device,
        inputs=member.inputs,
        output=member.output,
        parameter_bytes=member.parameter_bytes,
        no_cuda_graph_reason=member.no_cuda_graph_reason,
        cuda_graph_bytes=member.cuda_graph_bytes,
        breaker_state=int(member.switch.switch),  # type: ignore[arg-type]
        breaker_reason=member.switch.reason,
        upstream=member.upstream,
        staging_bytes=member.staging_bytes,
        activation_bytes=member.activation_bytes,
        shared_bytes=member.shared_bytes,
    )


def write_fusion(fusion: FusionDescription) -> ensemble_pb2.Fusion:
    """Turn the facts about a fusion into their message."""
    return ensemble_pb2.Fusion(
        method=fusion.method,
        weights=dict(fusion.weights),
        version=fusion.version,
        temperatures=dict(fusion.temperatures),
        fitted=fusion.is_fitted,
    )
