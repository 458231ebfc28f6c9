"""The models that clients of the protocol see: the ensemble, and each of its fused members by itself."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from twinfer.v1.ensemble_pb2 import Ensemble, InputSpec, Member
from twinfer.v1.tensor_pb2 import DataType

from ...errors import UnknownEnsemble, quote
from ...types import Response
from . import grpc_service_pb2 as pb
from .tensors import BYTES

PRIORITY_LEVELS, DEFAULT_PRIORITY = 3, 2

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a model; shape: of one request, -1 for any size.

    `read` finds its value in a response: by datatype a float32 array or None (FP32), a bool (BOOL), or bytes (BYTES).
    """

    name: str
    datatype: str
    shape: Shape
    read: Callable[[Response], object]
    is_members_prediction: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """One model, with its inputs and outputs by name; `member` is the index of the member that it is, None for the ensemble."""

    name: str
    version: str
    platform: str
    max_batch_size: int
    inputs: Mapping[str, InputSpec]
    outputs: Mapping[str, Output]
    member: int | None = None


def list_models(ensemble: Ensemble) -> dict[str, Model]:
    """Return the models by name, the ensemble first. Neither breakers nor a new fusion change any of it."""

    def make(name: str, platform: str, members: Collection[str], outputs: list[Output], member: int | None = None) -> Model:
        return Model(
            name=name,
            version=str(ensemble.version),
            platform=f"twinfer_{platform}",
            max_batch_size=min(ensemble.limits.max_batch_size, ensemble.limits.max_in_flight_requests),
            inputs={spec.name: spec for spec in ensemble.inputs if spec.always_required or set(spec.members) & set(members)},
            outputs={output.name: output for output in outputs},
            member=member,
        )

    outputs = [
        Output("prediction", "FP32", tuple(ensemble.output_shape), lambda response: response.prediction),
        Output("degraded", "BOOL", (1,), lambda response: response.is_degraded),
    ]
    models = []
    for index, member in enumerate(ensemble.members):
        outputs += _list_outputs(member, index, f"{member.name}.")
        if member.output != "features":  # they are for other members, and no request is answered with them
            name, members = f"{ensemble.name}.{member.name}", _list_chain(ensemble, member.name)
            models.append(make(name, member.loader, members, _list_outputs(member, index), index))
    models.insert(0, make(ensemble.name, "ensemble", [member.name for member in ensemble.members], outputs))
    return {model.name: model for model in models}


def find_model(models: Mapping[str, Model], name: str, version: str) -> Model:
    """Return the model of this name and version, empty for the one that is served; raises UnknownEnsemble."""
    model = models.get(name)
    if model is None:
        raise UnknownEnsemble(f"model {quote(name)} is not served; allowed: {', '.join(map(repr, models))}")
    if version not in ("", model.version):
        raise UnknownEnsemble(f"model {name!r} version {quote(version)} is not served; allowed: {model.version!r}, or empty")
    return model


def write_metadata(model: Model) -> pb.ModelMetadataResponse:
    """Return what a model takes and answers with; shapes begin with the batch."""
    response = pb.ModelMetadataResponse(name=model.name, versions=[model.version], platform=model.platform)
    for spec in model.inputs.values():
        datatype, shape = _find_published(spec)
        response.inputs.add(name=spec.name, datatype=datatype, shape=(-1, *shape))
    for output in model.outputs.values():
        response.outputs.add(name=output.name, datatype=output.datatype, shape=(-1, *output.shape))
    return response


def write_config(model: Model) -> pb.ModelConfig:
    """Return how a model is served; shapes are of one request."""
    config = pb.ModelConfig(
        name=model.name,
        platform=model.platform,
        backend="twinfer",
        max_batch_size=model.max_batch_size,
        dynamic_batching=pb.ModelDynamicBatching(priority_levels=PRIORITY_LEVELS, default_priority_level=DEFAULT_PRIORITY),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    for spec in model.inputs.values():
        datatype, shape = _find_published(spec)
        is_optional = spec.optional and model.member is None  # a member by itself needs all that it takes
        config.input.add(name=spec.name, data_type=_find_type(datatype), dims=shape, optional=is_optional)
    for output in model.outputs.values():
        config.output.add(name=output.name, data_type=_find_type(output.datatype), dims=output.shape)
    return config


def _list_outputs(member: Member, index: int, prefix: str = "") -> list[Output]:
    state = Output(f"{prefix}state", BYTES, (1,), lambda response: response.members[index].state.name.encode())
    if member.output == "features":
        return [state]
    shape = tuple(member.output_shape)
    return [Output(f"{prefix}prediction", "FP32", shape, lambda response: response.members[index].prediction, True), state]


def _list_chain(ensemble: Ensemble, name: str) -> list[str]:
    """List a member, its upstream members, and theirs."""
    upstream = {member.name: member.upstream for member in ensemble.members}
    chain = [name]
    for found in chain:  # grows meanwhile
        chain += [above for above in upstream[found] if above not in chain]
    return chain


def _find_published(spec: InputSpec) -> tuple[str, Shape]:
    """Find the datatype and the shape of one request that clients are told to send; others may be taken, too."""
    if spec.kind == "text":
        return BYTES, (2,) if spec.pair else (1,) if spec.max_samples == 1 else (-1,)
    shape = spec.native_shape if spec.max_samples == 1 else (-1, *spec.native_shape)
    return DataType.Name(spec.dtype).removeprefix("DATA_TYPE_"), tuple(shape)


def _find_type(datatype: str) -> str:
    return f"TYPE_{'STRING' if datatype == BYTES else datatype}"
