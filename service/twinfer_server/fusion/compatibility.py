"""What a method asks of an ensemble's members, as far as their specs say it."""

from collections.abc import Sequence

from ..errors import InvalidEnsemble
from ..spec import CropsInputSpec, EnsembleSpec, ImageInputSpec, OutputInputSpec, Task
from .voters import list_voters

OPINIONS = ("logits", "probabilities")

KINDS: dict[Task, tuple[str, ...]] = {
    "classification": OPINIONS,
    "multi_label": OPINIONS,
    "embedding": ("embedding",),
    "similarity": ("embedding",),
    "detection": ("detections",),
    "tensor": ("tensor",),
}
"""The output kinds that a task fuses."""


def check_members(spec: EnsembleSpec) -> None:
    """Refuse, for a method that fuses one output per row and member, whatever else the members give."""
    check_kinds(spec, KINDS[spec.task])
    _check_samples(spec, [list(spec.members)[index] for index in list_voters(spec)])
    _check_pictures(spec)


def check_pair(spec: EnsembleSpec) -> None:
    """Refuse, for a comparison of embeddings, all but two voting members of which the query gives one for a row."""
    check_kinds(spec, KINDS[spec.task])
    names = [list(spec.members)[index] for index in list_voters(spec)]
    if len(names) != 2:
        raise InvalidEnsemble(f"members: {names} give embeddings; allowed: two that do, one is compared with the other")
    query = spec.fusion.query or names[0]
    if query not in names:
        raise InvalidEnsemble(f"fusion.query: found {query!r}, whose output is of kind 'features'; allowed: {names}")
    _check_samples(spec, [query])


def check_crops(spec: EnsembleSpec) -> None:
    """Refuse all but two voting members: a detector, and a classifier that takes crops of what it finds."""
    check_kinds(spec, ("detections", *OPINIONS))
    kinds = {name: member.output.kind for name, member in spec.members.items() if member.output.kind != "features"}
    if len(kinds) != 2 or list(kinds.values()).count("detections") != 1:
        raise InvalidEnsemble(f"members: found outputs {kinds}; allowed: one of detections, and one of logits or probabilities")
    detector, classifier = sorted(kinds, key=lambda name: kinds[name] != "detections")
    if find_crops(spec, classifier, detector) is None:
        raise InvalidEnsemble(
            f"members.{classifier}.input: no input of kind 'crops' with member = {detector!r}; allowed: with one, it says "
            "what has been found"
        )
    _check_samples(spec, [detector])
    _check_pictures(spec)


def find_crops(spec: EnsembleSpec, member: str, detector: str) -> CropsInputSpec | None:
    """Find the input by which a member takes crops of what `detector` has found."""
    for input_spec in spec.members[member].input.values():
        if isinstance(input_spec, CropsInputSpec) and input_spec.member == detector:
            return input_spec
    return None


def check_kinds(spec: EnsembleSpec, kinds: Sequence[str]) -> None:
    """Refuse output kinds that do not fit, and members that the fusion names although they do not vote."""
    allowed = ", ".join(map(repr, kinds))
    voters = list_voters(spec)
    if not voters:
        raise InvalidEnsemble(f"members: all outputs are of kind 'features'; allowed: at least one of {allowed}")
    names = list(spec.members)
    for name in (names[index] for index in voters):
        kind = spec.members[name].output.kind
        if kind not in kinds:
            raise InvalidEnsemble(
                f"members.{name}.output.kind: found {kind!r}; allowed for task {spec.task!r}: {allowed}, or 'features'"
            )
    for key in ("weights", "temperatures"):
        for name in getattr(spec.fusion, key):
            if names.index(name) not in voters:
                raise InvalidEnsemble(f"fusion.{key}.{name}: the member's output is of kind 'features'; allowed: members that vote")


def _check_samples(spec: EnsembleSpec, names: Sequence[str]) -> None:
    """Refuse members that may compute on several samples of a row where the method fuses one output."""
    several: set[str] = set()
    for name, member in spec.members.items():
        for key, input_spec in member.input.items():
            has_several = isinstance(input_spec, CropsInputSpec) or getattr(input_spec, "max_samples", 1) > 1
            if not has_several and not (isinstance(input_spec, OutputInputSpec) and input_spec.member in several):
                continue
            several.add(name)
            if name in names:
                raise InvalidEnsemble(
                    f"members.{name}.input.{key}: it may give several samples for a row; allowed: one, "
                    f"for {spec.fusion.method!r} fuses one output of this member for a row"
                )


def _check_pictures(spec: EnsembleSpec) -> None:
    """Refuse pixels where nobody could say of what."""
    for name, member in spec.members.items():
        images = sum(isinstance(input_spec, ImageInputSpec) for input_spec in member.input.values())
        if member.output.kind == "detections" and member.output.box_units == "pixels" and images != 1:
            raise InvalidEnsemble(
                f"members.{name}.output.box_units: found 'pixels' of a member with {images} images; allowed: of one with one"
            )
