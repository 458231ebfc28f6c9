"""THE SEAM: `twinfer.v1.Ensemble` with all that `models` needs. To be deleted when `rpc/describe.py` fills these fields itself."""

from twinfer.v1 import ensemble_pb2

from ...engine import Description
from ..describing import write_description


def describe(description: Description) -> ensemble_pb2.Ensemble:
    """Return the facts about an ensemble as their message."""
    ensemble = write_description(description)
    ensemble.output_shape.extend(description.fused_shape)
    ensemble.compared_input = description.compared
    for spec, entry in zip(ensemble.inputs, description.inputs, strict=True):
        spec.always_required = entry.is_needed
        spec.native_shape.extend(entry.member_shape)
    for member, facts in zip(ensemble.members, description.members, strict=True):
        member.output_shape.extend(facts.output_shape)
    return ensemble
