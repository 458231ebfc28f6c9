"""Which members take part in the fusion."""

from ..spec import EnsembleSpec


def list_voters(spec: EnsembleSpec) -> tuple[int, ...]:
    """List the members whose outputs are fused, by index; those that give features only feed others."""
    return tuple(index for index, member in enumerate(spec.members.values()) if member.output.kind != "features")
