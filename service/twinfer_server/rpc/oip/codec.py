"""The codec: a message of the protocol to the engine's requests, one for each index of the batch, and their responses back."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from twinfer.v1.ensemble_pb2 import InputSpec

from ...errors import InvalidInput, InvalidOption, UnknownInput, quote
from ...types import Array, InferRequest, Policy, Priority, RawInput, Response
from ..boundary import Arrival
from ..codec import MAX_REQUEST_ID_BYTES
from . import grpc_service_pb2 as pb
from .models import Model, Output
from .tensors import BYTES, Elements, check_tensor, join_elements, read_contents, read_raw

Infer = pb.ModelInferRequest
Tensor = pb.ModelInferRequest.InferInputTensor
Parameters = Mapping[str, pb.InferParameter]

NOT_HERE = {
    **dict.fromkeys(("sequence_id", "sequence_start", "sequence_end"), "requests that belong to no sequence"),
    "classification": "outputs that come whole",
    "shared_memory_region": "tensors in the messages",
}
"""Triton's parameters that ask for another answer, each with what there is instead; 0, false and the empty text ask for nothing."""
BASE64 = "base64"
"""The content type of MLServer's clients whose bytes are not the text or the picture itself."""
MAX_PARAMETERS = 64


def read_outputs(message: Infer, model: Model) -> list[Output]:
    """Return the outputs that are asked for, or all that the metadata list; raises InvalidOption."""
    if not message.outputs:
        return list(model.outputs.values())
    left, outputs = dict(model.outputs), []
    for wanted in message.outputs:
        field, output = f"outputs[{quote(wanted.name)}]", left.pop(wanted.name, None)
        if output is None:
            raise InvalidOption(f"{field}: no such output, or found twice; allowed: {', '.join(model.outputs)}")
        _check_parameters(f"{field}.parameters", wanted.parameters)
        outputs.append(output)
    return outputs


def read_requests(message: Infer, model: Model, outputs: Sequence[Output], arrival: Arrival) -> list[InferRequest]:
    """Return the engine's requests, as many as the first size of every input's shape says; raises InvalidRequest. Any thread."""
    common = _read_options(message, model, outputs, arrival)
    size, columns = _read_inputs(message, model)
    return [replace(common, inputs={name: column[index] for name, column in columns.items()}) for index in range(size)]


def write_response(message: Infer, model: Model, outputs: Sequence[Output], responses: Sequence[Response]) -> pb.ModelInferResponse:
    """Return the responses to a message's requests, each output stacked in the requests' order."""
    reply = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=message.id)
    for output in outputs:
        values: list[Any] = [output.read(response) for response in responses]
        if output.datatype == BYTES:
            shape, data = (len(values), 1), join_elements(values)
        else:
            array = np.array(values)[:, np.newaxis] if output.datatype == "BOOL" else _stack(values, output.shape)
            shape, data = array.shape, array.tobytes()
        reply.outputs.add(name=output.name, datatype=output.datatype, shape=shape)
        reply.raw_output_contents.append(data)
    return reply


# --- options ----------------------------------------------------------------------------------------------------------


def _read_options(message: Infer, model: Model, outputs: Sequence[Output], arrival: Arrival) -> InferRequest:
    """Read what all requests of a message have in common, into one without inputs."""
    if len(message.id.encode()) > MAX_REQUEST_ID_BYTES:
        raise InvalidOption(f"id: found {len(message.id.encode())} bytes; allowed: {MAX_REQUEST_ID_BYTES}")
    parameters, is_ensemble = message.parameters, model.member is None
    _check_parameters("parameters", parameters)
    if "policy" in parameters and not is_ensemble:
        raise InvalidOption(
            f"parameters['policy']: found with {model.name!r}; allowed: with the ensemble, which has several members"
        )
    timeout, priority = _read_number(parameters, "timeout"), _read_number(parameters, "priority")
    return InferRequest(
        inputs={},
        arrived_at=arrival.at,
        deadline=arrival.deadline,
        span=arrival.span,
        # A member by itself has only its own inputs, whatever the others would need.
        policy=_read_policy(parameters) if is_ensemble else Policy.BEST_EFFORT,
        timeout_seconds=timeout / 1e6 if timeout else None,
        # Triton's numbers: 1 goes first, 0 is the default.
        priority={0: Priority.NORMAL, 1: Priority.HIGH, 2: Priority.NORMAL}.get(priority, Priority.LOW),
        wants_member_predictions=any(output.is_members_prediction for output in outputs),
        request_id=message.id,
        caller=arrival.caller,
    )


def _check_parameters(field: str, parameters: Parameters) -> None:
    """Raise InvalidOption for a parameter that asks for what is not here; others, of the clients' own, change nothing."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidOption(f"{field}: found {len(parameters)}; allowed: at most {MAX_PARAMETERS}")
    for name, parameter in parameters.items():
        if name in NOT_HERE and _find_value(parameter)[1]:
            raise InvalidOption(f"{field}[{name!r}]: found {quote(_find_value(parameter)[1])}; allowed: {NOT_HERE[name]}")


def _find_value(parameter: pb.InferParameter) -> tuple[str, Any]:
    """Find which kind of value is set, and the value."""
    which = parameter.WhichOneof("parameter_choice")
    return (which, getattr(parameter, which)) if which else ("no value", None)


def _read_number(parameters: Parameters, name: str) -> int:
    """Read a whole number of at least 0; 0 where it is not set."""
    which, value = _find_value(parameters[name]) if name in parameters else ("int64_param", 0)
    if which not in ("int64_param", "uint64_param") or value < 0:
        raise InvalidOption(f"parameters[{name!r}]: found {which} {quote(value)}; allowed: int64_param or uint64_param, at least 0")
    return int(value)


def _read_policy(parameters: Parameters) -> Policy | None:
    if "policy" not in parameters:
        return None
    which, value = _find_value(parameters["policy"])
    if which != "string_param" or value not in Policy.__members__:
        raise InvalidOption(f"parameters['policy']: found {which} {quote(value)}; allowed: {', '.join(Policy.__members__)}")
    return Policy[value]


# --- inputs -----------------------------------------------------------------------------------------------------------


def _read_inputs(message: Infer, model: Model) -> tuple[int, dict[str, Sequence[RawInput]]]:
    """Return the size of the batch, and what each input brings for each of its requests."""
    tensors: dict[str, Tensor] = {}
    for tensor in message.inputs:  # ends at the first that should not be there, however many there are
        if tensor.name not in model.inputs:
            raise UnknownInput(f"{_field_of(tensor)}: no such input; allowed: {list(model.inputs)}")
        if tensor.name in tensors:
            raise InvalidInput(f"{_field_of(tensor)}: found twice; allowed: once")
        _check_parameters(f"{_field_of(tensor)}.parameters", tensor.parameters)
        tensors[tensor.name] = tensor
    raw = message.raw_input_contents
    if raw and len(raw) != len(tensors):
        raise InvalidInput(f"raw_input_contents: found {len(raw)}; allowed: {len(tensors)}, one for each input")
    for tensor in tensors.values():
        check_tensor(_field_of(tensor), tensor.datatype, tensor.shape)
    sizes = {tensor.name: tensor.shape[0] for tensor in tensors.values()}
    size = next(iter(sizes.values()), 1)
    if len(set(sizes.values())) > 1 or not 1 <= size <= model.max_batch_size:
        raise InvalidInput(f"inputs: found batches of {sizes}; allowed: 1 to {model.max_batch_size}, as many of each")
    bytes_of = dict(zip(tensors, raw, strict=True)) if raw else {}
    columns = {name: _read_column(tensor, bytes_of.get(name), model.inputs[name]) for name, tensor in tensors.items()}
    return size, columns


def _field_of(tensor: Tensor) -> str:
    """Return what errors call an input."""
    return f"inputs[{quote(tensor.name)}]"


def _read_column(tensor: Tensor, raw: bytes | None, spec: InputSpec) -> Sequence[RawInput]:
    """Read an input's values, one for each request of the batch."""
    field, size = _field_of(tensor), tensor.shape[0]
    if raw is None:
        values = read_contents(field, tensor.datatype, tensor.shape, tensor.contents)
    elif tensor.contents.ListFields():
        raise InvalidInput(f"{field}.contents: found elements beside the bytes of the message; allowed: one or the other")
    else:
        values = read_raw(field, tensor.datatype, tensor.shape, raw)
    if isinstance(values, np.ndarray):
        has_one_number_each = spec.kind == "tensor" and values.ndim == 1 and list(spec.native_shape) == [1]
        # An array is a sequence of its first dimension's.
        return values[:, np.newaxis] if has_one_number_each else values  # type: ignore[return-value]
    if _is_base64(tensor):
        values = _decode_base64(field, values)
    if spec.kind == "tensor":
        raise InvalidInput(f"{field}.datatype: found {BYTES}; allowed: a tensor of numbers, as the metadata says")
    if spec.kind == "text":
        return _read_texts(field, values, size)
    if len(values) != size:
        raise InvalidInput(f"{field}: found {len(values)} images for a batch of {size}; allowed: one for each request")
    return values


def _is_base64(tensor: Tensor) -> bool:
    return "content_type" in tensor.parameters and tensor.parameters["content_type"].string_param == BASE64


def _decode_base64(field: str, elements: Elements) -> Elements:
    """Return the bytes that elements hold as MLServer's clients write them."""
    try:
        return [base64.b64decode(element, validate=True) for element in elements]
    except ValueError as error:
        raise InvalidInput(f"{field}: found elements that are no base64 ({error}); allowed: base64, as content_type says") from None


def _read_texts(field: str, elements: Elements, size: int) -> Sequence[RawInput]:
    """Read one text for each request of the batch, or several for each."""
    each = len(elements) // size
    if each == 0:
        raise InvalidInput(f"{field}: found no text; allowed: at least one for each request")
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{field}: found bytes that are no UTF-8 ({error.reason}); allowed: texts in UTF-8") from None
    return texts if each == 1 else [tuple(texts[index * each : (index + 1) * each]) for index in range(size)]


# --- outputs ----------------------------------------------------------------------------------------------------------


def _stack(values: Sequence[Array | None], shape: Sequence[int]) -> Array:
    """Stack arrays as little-endian float32, with NaN where a request has none, or a smaller one than others.

    shape: of each, -1 for any size, where no request has one.
    """
    there = [value for value in values if value is not None]
    largest = np.max([value.shape for value in there], axis=0) if there else np.maximum(shape, 0)
    stacked = np.full((len(values), *largest), np.nan, "<f4")
    for index, value in enumerate(values):
        if value is not None:
            place: tuple[int | slice, ...] = (index, *(slice(size) for size in value.shape))
            stacked[place] = value
    return stacked
