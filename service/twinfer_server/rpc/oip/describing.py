"""Models as the protocol's messages: metadata, configuration, and the index of the repository."""

from . import grpc_service_pb2 as pb
from .datatypes import BYTES
from .models import InputTensor, Model, OutputTensor

PRIORITIES, DEFAULT_PRIORITY = 3, 2


def write_metadata(model: Model) -> pb.ModelMetadataResponse:
    """Say what a model takes and gives; shapes begin with the rows."""
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[model.version],
        platform=model.platform,
        inputs=[_write_tensor(tensor) for tensor in model.inputs],
        outputs=[_write_tensor(tensor) for tensor in model.outputs],
    )


def write_config(model: Model) -> pb.ModelConfig:
    """Say how a model is served; shapes are of one row."""
    config = pb.ModelConfig(
        name=model.name,
        platform=model.platform,
        backend=model.backend,
        max_batch_size=model.max_batch_size,
        input=[
            pb.ModelInput(name=tensor.name, data_type=_type_of(tensor.datatype), dims=tensor.dims, optional=tensor.is_optional)
            for tensor in model.inputs
        ],
        output=[
            pb.ModelOutput(name=tensor.name, data_type=_type_of(tensor.datatype), dims=tensor.dims) for tensor in model.outputs
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    if model.is_ensemble:
        config.ensemble_scheduling.step.extend(
            pb.ModelEnsembling.Step(
                model_name=step.model, model_version=int(model.version), input_map=step.inputs, output_map=step.outputs
            )
            for step in model.steps
        )
    else:
        config.dynamic_batching.priority_levels = PRIORITIES
        config.dynamic_batching.default_priority_level = DEFAULT_PRIORITY
    return config


def _write_tensor(tensor: InputTensor | OutputTensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.dims))


def _type_of(datatype: str) -> pb.DataType:
    number: pb.DataType = getattr(pb, f"TYPE_{'STRING' if datatype == BYTES else datatype}")
    return number
