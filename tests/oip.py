"""Requests of the Open Inference Protocol, built by hand as any client builds them, and the answers read."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from tests.calls import PATIENCE_SECONDS, Failure, call
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"
MODEL_INFER = f"{SERVICE}/ModelInfer"
MODEL_STREAM_INFER = f"{SERVICE}/ModelStreamInfer"

M = TypeVar("M", bound=Message)
Tensor = pb.ModelInferRequest.InferInputTensor

DTYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1", "BOOL": "?"}


def ask(channel: grpc.Channel, method: str, request: Message, kind: type[M]) -> M:
    """Call a method that must not fail."""
    found = call(channel, f"{SERVICE}/{method}", request.SerializeToString())
    assert not isinstance(found, Failure), found
    return kind.FromString(found)


def infer(channel: grpc.Channel, request: pb.ModelInferRequest, timeout: float = PATIENCE_SECONDS) -> Any:
    """Call ModelInfer; gives the response, or the failure."""
    found = call(channel, MODEL_INFER, request.SerializeToString(), timeout)
    return found if isinstance(found, Failure) else pb.ModelInferResponse.FromString(found)


def stream(channel: grpc.Channel, messages: Any, timeout: float = PATIENCE_SECONDS) -> Any:
    """Open a ModelStreamInfer that sends `messages`, bytes each; gives the call, an iterator of bytes."""
    return channel.stream_stream(MODEL_STREAM_INFER)(iter(messages), timeout=timeout)


def parameter(value: object) -> pb.InferParameter:
    """Make a parameter of the type that the value has; whole numbers are signed."""
    match value:
        case bool():
            return pb.InferParameter(bool_param=value)
        case int():
            return pb.InferParameter(int64_param=value)
        case str():
            return pb.InferParameter(string_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case pb.InferParameter():
            return value
    raise TypeError(value)


def tensor(name: str, datatype: str, shape: Sequence[int], contents: Any = None, **parameters: object) -> Tensor:
    """Make an input; `contents` are its typed elements, where they are in it."""
    made = Tensor(name=name, datatype=datatype, shape=shape, contents=contents)
    for key, value in parameters.items():
        made.parameters[key].CopyFrom(parameter(value))
    return made


def wanted(name: str, **parameters: object) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    """Make an output that is asked for."""
    made = pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
    for key, value in parameters.items():
        made.parameters[key].CopyFrom(parameter(value))
    return made


def join(*elements: bytes) -> bytes:
    """Write the elements of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def split(data: bytes) -> list[bytes]:
    """Read the elements of a BYTES tensor."""
    elements = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        elements.append(data[4 : 4 + size])
        data = data[4 + size :]
    return elements


def request(
    model: str, inputs: Sequence[tuple[Tensor, bytes | None]], outputs: Sequence[Any] = (), request_id: str = "",
    parameters: Mapping[str, object] | None = None, version: str = "",
) -> pb.ModelInferRequest:  # fmt: skip
    """Make a request of inputs and their raw bytes, None where those are elsewhere."""
    made = pb.ModelInferRequest(
        model_name=model, model_version=version, id=request_id, inputs=[made for made, _ in inputs],
        outputs=[wanted(output) if isinstance(output, str) else output for output in outputs],
        raw_input_contents=[raw for _, raw in inputs if raw is not None],
    )  # fmt: skip
    for key, value in (parameters or {}).items():
        made.parameters[key].CopyFrom(parameter(value))
    return made


def raw(name: str, datatype: str, values: object) -> tuple[Tensor, bytes]:
    """Make an input of numbers as raw bytes, rows first."""
    array = np.array(values, DTYPES[datatype])
    return tensor(name, datatype, array.shape), array.tobytes()


def texts(name: str, *values: str | bytes, each: int = 1) -> tuple[Tensor, bytes]:
    """Make an input of BYTES, `each` for every row."""
    elements = [value.encode() if isinstance(value, str) else value for value in values]
    return tensor(name, "BYTES", [len(elements) // each, each]), join(*elements)


def read(response: pb.ModelInferResponse) -> dict[str, Any]:
    """Read the outputs by name: arrays, and nested lists of bytes for BYTES."""
    assert len(response.outputs) == len(response.raw_output_contents)
    found: dict[str, Any] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            array: NDArray[Any] = np.array(split(data), object)
        else:
            array = np.frombuffer(data, DTYPES[output.datatype])
        found[output.name] = (
            array.reshape(list(output.shape)).tolist() if output.datatype == "BYTES" else array.reshape(output.shape)
        )
    return found
