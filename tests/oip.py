"""Messages of the Open Inference Protocol, built by hand as any client builds them, and the responses read."""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message

from tests.calls import PATIENCE_SECONDS, Failure, call
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"
MODEL_INFER = f"{SERVICE}/ModelInfer"
MODEL_STREAM_INFER = f"{SERVICE}/ModelStreamInfer"

M = TypeVar("M", bound=Message)
T = TypeVar("T", pb.ModelInferRequest, pb.ModelInferRequest.InferInputTensor, pb.ModelInferRequest.InferRequestedOutputTensor)
Tensor = pb.ModelInferRequest.InferInputTensor
Input = tuple[Tensor, bytes | None]
"""An input and its raw bytes, None where its elements are typed."""

DTYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1", "BOOL": "?"}


def ask(channel: grpc.Channel, method: str, request: Message, kind: type[M]) -> M:
    """Call a method that must not fail."""
    found = call(channel, f"{SERVICE}/{method}", request.SerializeToString())
    assert not isinstance(found, Failure), found
    return kind.FromString(found)


def infer(channel: grpc.Channel, message: pb.ModelInferRequest) -> Any:
    """Call ModelInfer; returns the response, or the failure."""
    found = call(channel, MODEL_INFER, message.SerializeToString())
    return found if isinstance(found, Failure) else pb.ModelInferResponse.FromString(found)


def outputs(channel: grpc.Channel, *inputs: Input, model: str = "gated", wanted: Sequence[Any] = (), **rest: Any) -> dict[str, Any]:
    """Call ModelInfer, which must not fail, and read the outputs."""
    response = infer(channel, request(model, inputs, wanted, **rest))
    assert isinstance(response, pb.ModelInferResponse), response
    return read(response)


def stream(channel: grpc.Channel, messages: Iterable[bytes]) -> Any:
    """Open a ModelStreamInfer that sends these messages; returns the call, an iterator of bytes."""
    exchange: Any = channel.stream_stream(MODEL_STREAM_INFER)
    return exchange(iter(messages), timeout=PATIENCE_SECONDS)


def request(
    model: str, inputs: Sequence[Input], outputs: Sequence[Any] = (), request_id: str = "",
    parameters: Mapping[str, Any] | None = None, version: str = "",
) -> pb.ModelInferRequest:  # fmt: skip
    """Make a message; outputs are named, or made by `wanted`."""
    made = pb.ModelInferRequest(
        model_name=model, model_version=version, id=request_id, inputs=[tensor for tensor, _ in inputs],
        outputs=[wanted(output) if isinstance(output, str) else output for output in outputs],
        raw_input_contents=[raw for _, raw in inputs if raw is not None],
    )  # fmt: skip
    return _with_parameters(made, parameters or {})


def tensor(name: str, datatype: str, shape: Sequence[int], contents: Any = None, **parameters: Any) -> Tensor:
    """Make an input; `contents` are its typed elements, where they are in it."""
    return _with_parameters(Tensor(name=name, datatype=datatype, shape=shape, contents=contents), parameters)


def wanted(name: str, **parameters: Any) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    """Make an output that is asked for."""
    return _with_parameters(pb.ModelInferRequest.InferRequestedOutputTensor(name=name), parameters)


def raw(name: str, datatype: str, values: object) -> Input:
    """Make an input of numbers as raw bytes, the batch first."""
    array = np.array(values, DTYPES[datatype])
    return tensor(name, datatype, array.shape), array.tobytes()


def texts(name: str, *values: str | bytes, each: int = 1) -> Input:
    """Make an input of BYTES, `each` for every request."""
    elements = [value.encode() if isinstance(value, str) else value for value in values]
    return tensor(name, "BYTES", [len(elements) // each, each]), join(*elements)


def join(*elements: bytes) -> bytes:
    """Write the elements of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def read(response: pb.ModelInferResponse) -> dict[str, Any]:
    """Read the outputs by name: arrays, and nested lists of bytes for BYTES."""
    found: dict[str, Any] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            found[output.name] = np.array([*_split(data)], object).reshape(list(output.shape)).tolist()
        else:
            found[output.name] = np.frombuffer(data, DTYPES[output.datatype]).reshape(output.shape)
    return found


def _split(data: bytes) -> Iterator[bytes]:
    while data:
        (size,) = struct.unpack_from("<I", data)
        yield data[4 : 4 + size]
        data = data[4 + size :]


def _with_parameters(message: T, parameters: Mapping[str, Any]) -> T:
    """Set parameters of the types that the values have; whole numbers are signed."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for key, value in parameters.items():
        made = value if isinstance(value, pb.InferParameter) else pb.InferParameter(**{kinds[type(value)]: value})
        message.parameters[key].CopyFrom(made)
    return message
