"""The models that the protocol is told of: the ensemble, each of its members by itself, and the fusion."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ...errors import UnknownEnsemble, quote
from .adapter import Description, InputDescription, MemberDescription
from .datatypes import BYTES, DATATYPE_OF_NAME

Dims = tuple[int, ...]
"""A tensor's shape for one row; -1 means any size."""

PREDICTION, STATE, DEGRADED = "prediction", "state", "degraded"


class Role(Enum):
    """What an output holds."""

    FUSED = "the fused prediction"
    DEGRADED = "whether a member that should have taken part did not"
    OWN = "a member's own prediction"
    STATE = "what became of a member"


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input of a model, as it is published; `kind` says what else is taken in its place."""

    name: str
    datatype: str
    dims: Dims
    kind: str
    is_optional: bool


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of a model; `member` is the index of the member that it is about."""

    name: str
    datatype: str
    dims: Dims
    role: Role
    member: int = -1
    is_default: bool = True
    """Whether a request that names no outputs gets it."""
    is_scores: bool = False
    """Whether it has one score for each class, so that the best can be asked for."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the ensemble: the model, and how its tensors are named in the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """One model; `member` is the index of the member that it is by itself, -1 for the others.

    `refusal` says why nobody can ask it, and is empty where one can.
    """

    name: str
    version: str
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[InputTensor, ...]
    outputs: tuple[OutputTensor, ...]
    member: int = -1
    steps: tuple[Step, ...] = ()
    refusal: str = ""

    @property
    def is_ensemble(self) -> bool:
        """Whether it is the ensemble itself."""
        return bool(self.steps)


class Catalog:
    """The models by name, the ensemble first."""

    def __init__(self, description: Description) -> None:
        """Publish what is served; nothing of it changes with the switches or the fusion."""
        members = [_member_model(description, index) for index in range(len(description.members))]
        fusion = _fusion_model(description, members)
        self.ensemble = _ensemble_model(description, members, fusion)
        models = [self.ensemble, *members, fusion]
        if any(tensor.kind == "image" for tensor in self.ensemble.inputs):
            models.append(_encoded_model(description, self.ensemble))
        self.models = {model.name: model for model in models}

    def find(self, name: str, version: str) -> Model:
        """Give the model; raises UnknownEnsemble."""
        model = self.models.get(name)
        if model is None:
            raise UnknownEnsemble(f"model {quote(name)} is not served; allowed: {', '.join(map(repr, self.models))}")
        if version not in ("", model.version):
            raise UnknownEnsemble(f"model {name!r} version {quote(version)} is not served; allowed: {model.version!r}, or empty")
        return model


def _ensemble_model(description: Description, members: Sequence[Model], fusion: Model) -> Model:
    outputs, steps = [*fusion.outputs], []
    for facts, member in zip(description.members, members, strict=True):
        names = {output.name: f"{facts.name}.{output.name}" for output in member.outputs}
        outputs += [
            OutputTensor(names[own.name], own.datatype, own.dims, own.role, own.member, own.role is Role.STATE, own.is_scores)
            for own in member.outputs
        ]
        steps.append(Step(member.name, {tensor.name: tensor.name for tensor in member.inputs}, names))
    votes = {tensor.name: f"{tensor.name}.{PREDICTION}" for tensor in fusion.inputs}
    steps.append(Step(fusion.name, votes, {output.name: output.name for output in fusion.outputs}))
    return Model(
        name=description.name,
        version=str(description.version),
        platform="ensemble",
        backend="",
        max_batch_size=_max_rows(description),
        inputs=_publish_inputs(description, [member.name for member in description.members]),
        outputs=tuple(outputs),
        steps=tuple(steps),
    )


def _member_model(description: Description, index: int) -> Model:
    facts = description.members[index]
    chain = [facts.name]
    for name in chain:  # grows: whoever feeds it, and whoever feeds those
        chain += [feeder for feeder in _find(description, name).upstream if feeder not in chain]
    is_voter = facts.output != "features"
    outputs = [OutputTensor(STATE, BYTES, (1,), Role.STATE, index)]
    if is_voter:
        is_scores = facts.output in ("logits", "probabilities") and len(facts.output_shape) == 1
        outputs.insert(0, OutputTensor(PREDICTION, "FP32", facts.output_shape, Role.OWN, index, is_scores=is_scores))
    return Model(
        name=f"{description.name}.{facts.name}",
        version=str(description.version),
        platform=f"twinfer_{facts.loader}",
        backend="twinfer",
        max_batch_size=_max_rows(description),
        inputs=_publish_inputs(description, chain, is_by_itself=True),
        outputs=tuple(outputs),
        member=index,
        refusal="" if is_voter else "it has no prediction of its own, it only feeds other members",
    )


def _fusion_model(description: Description, members: Sequence[Model]) -> Model:
    names = [member.name for member in description.members]
    voters = [
        InputTensor(names[model.member], output.datatype, output.dims, "tensor", is_optional=True)
        for model in members
        for output in model.outputs
        if output.role is Role.OWN
    ]
    is_scores = description.task in ("classification", "multi_label")
    return Model(
        name=_find_name(description, "fusion"),
        version=str(description.version),
        platform="twinfer_fusion",
        backend="twinfer",
        max_batch_size=_max_rows(description),
        inputs=tuple(voters),
        outputs=(
            OutputTensor(PREDICTION, "FP32", description.fused_shape, Role.FUSED, is_scores=is_scores),
            OutputTensor(DEGRADED, "BOOL", (1,), Role.DEGRADED),
        ),
        refusal="it computes on the device, on what the members of the same flight have left there",
    )


def _encoded_model(description: Description, ensemble: Model) -> Model:
    """Publish the ensemble once more, with images as encoded files, for clients that send what they are told to."""
    inputs = [replace(tensor, datatype=BYTES, dims=(1,)) if tensor.kind == "image" else tensor for tensor in ensemble.inputs]
    return replace(ensemble, name=_find_name(description, "encoded"), inputs=tuple(inputs))


def _find_name(description: Description, name: str) -> str:
    """Find a name in the ensemble that no member has."""
    while any(member.name == name for member in description.members):
        name += "_"
    return f"{description.name}.{name}"


def _find(description: Description, name: str) -> MemberDescription:
    return next(member for member in description.members if member.name == name)


def _max_rows(description: Description) -> int:
    return min(description.max_batch_size, description.limits.max_in_flight_requests)


def _publish_inputs(description: Description, takers: Collection[str], is_by_itself: bool = False) -> tuple[InputTensor, ...]:
    """Publish what these members take, and what no answer goes without; a member `is_by_itself` needs all of it."""
    return tuple(
        InputTensor(facts.name, *_publish(facts), facts.kind, facts.is_optional and not is_by_itself)
        for facts in description.inputs
        if facts.is_needed or any(name in takers for name in facts.members)
    )


def _publish(facts: InputDescription) -> tuple[str, Dims]:
    """Give the datatype and the shape that a client is told to send by default."""
    if facts.kind == "text":
        return BYTES, (2,) if facts.is_pair else (1,) if facts.max_samples == 1 else (-1,)
    return DATATYPE_OF_NAME[facts.dtype], facts.member_shape if facts.max_samples == 1 else (-1, *facts.member_shape)
