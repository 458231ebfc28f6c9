"""From a request of the protocol to plain rows: tensors cut row by row, parameters as options."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...errors import InvalidInput, InvalidOption, UnknownInput, quote
from ...types import Caller, InferRequest, Policy, Priority, RawInput
from ..boundary import Arrival
from ..codec import MAX_REQUEST_ID_BYTES
from . import grpc_service_pb2 as pb
from .datatypes import BYTES, Elements, check_shape, read_contents, read_raw
from .models import Model, OutputTensor, Role
from .parameters import Parameters, check_known, is_set, read_text, read_whole
from .regions import PARAMETERS, Place, Regions

CLASSIFICATION = "classification"
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output to answer with: as it is, or its `top_k` best classes; in the reply, or at a place in shared memory."""

    output: OutputTensor
    top_k: int
    place: Place | None


@dataclass(frozen=True, slots=True)
class Call:
    """A request but for its inputs: `make_row` makes a row of them, `wanted` are the outputs to answer with."""

    model: Model
    request_id: str
    make_row: Callable[[Mapping[str, RawInput]], InferRequest]
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """An input as it was sent, and where its bytes are: raw, in shared memory, or neither, and then among its typed elements."""

    tensor: pb.ModelInferRequest.InferInputTensor
    raw: bytes | Place | None

    @property
    def field(self) -> str:
        """What it is called in errors."""
        return name_input(self.tensor)


def name_input(tensor: pb.ModelInferRequest.InferInputTensor) -> str:
    """Say, for an error, which input it is about."""
    return f"inputs[{quote(tensor.name)}]"


def read_call(message: pb.ModelInferRequest, model: Model, regions: Regions, arrival: Arrival) -> Call:
    """Read everything but the inputs; raises InvalidOption."""
    if len(message.id.encode()) > MAX_REQUEST_ID_BYTES:
        raise InvalidOption(f"id: found {len(message.id.encode())} bytes; allowed: {MAX_REQUEST_ID_BYTES}")
    options = message.parameters
    if options:
        _check_options(options, model)
    wanted = _read_wanted(message, model, regions)
    timeout = read_whole("parameters", options, "timeout")
    make_row = partial(
        InferRequest,
        arrived_at=arrival.at,
        deadline=arrival.deadline,
        # A member by itself has only its own inputs, whatever the others would need.
        policy=_read_policy(options) if model.is_ensemble else Policy.BEST_EFFORT,
        timeout_seconds=timeout / 1e6 if timeout else None,
        priority=_read_priority(options),
        wants_member_predictions=any(want.output.role is Role.OWN for want in wanted),
        caller=Caller(message.id),
    )
    return Call(model, message.id, make_row, wanted)


def find_sources(message: pb.ModelInferRequest, model: Model, regions: Regions, max_bytes: int) -> list[Source]:
    """Find where each input's bytes are, before any are read; raises InvalidRequest.

    What comes through shared memory may have `max_bytes` in all, as a message.
    """
    names = [tensor.name for tensor in model.inputs]
    places: dict[str, Place | None] = {}
    for tensor in message.inputs:  # ends at the first that should not be there, however many there are
        if tensor.name not in names:
            raise UnknownInput(f"{name_input(tensor)}: no such input; allowed: {names}")
        if tensor.name in places:
            raise InvalidInput(f"{name_input(tensor)}: found twice; allowed: once")
        places[tensor.name] = None
        if tensor.parameters:
            check_known(f"{name_input(tensor)}.parameters", tensor.parameters, PARAMETERS)
            places[tensor.name] = regions.find_place(name_input(tensor), tensor.parameters)
    shared_bytes = sum(place.byte_size for place in places.values() if place is not None)
    if shared_bytes > max_bytes:
        raise InvalidInput(f"inputs: found {shared_bytes} bytes in shared memory; allowed: {max_bytes}")
    in_band = list(places.values()).count(None)
    if message.raw_input_contents and len(message.raw_input_contents) != in_band:
        found = len(message.raw_input_contents)
        raise InvalidInput(f"raw_input_contents: found {found}; allowed: {in_band}, one for each input not in shared memory")
    sources, raw = [], iter(message.raw_input_contents)
    for tensor in message.inputs:
        found_at = places[tensor.name] or next(raw, None)
        if found_at is not None and tensor.contents.ListFields():
            field = f"{name_input(tensor)}.contents"
            raise InvalidInput(f"{field}: found elements beside the bytes of the request; allowed: one or the other")
        sources.append(Source(tensor, found_at))
    return sources


def read_rows(call: Call, sources: Sequence[Source]) -> list[InferRequest]:
    """Cut the inputs into rows, as many as the first sizes of their shapes say; raises InvalidRequest. Any thread."""
    kinds = {tensor.name: tensor.kind for tensor in call.model.inputs}
    for source in sources:
        check_shape(source.field, source.tensor.datatype, source.tensor.shape)
    counts = {source.tensor.name: source.tensor.shape[0] for source in sources}
    rows, most = next(iter(counts.values()), 1), call.model.max_batch_size
    if len(set(counts.values())) > 1 or not 1 <= rows <= most:
        raise InvalidInput(f"inputs: found {counts} rows; allowed: 1 to {most}, as many of each")
    columns = {source.tensor.name: _read_column(source, kinds[source.tensor.name]) for source in sources}
    return [call.make_row({name: column[row] for name, column in columns.items()}) for row in range(rows)]


def _check_options(options: Parameters, model: Model) -> None:
    known = ("timeout", "priority", "policy") if model.is_ensemble else ("timeout", "priority")
    check_known("parameters", {name: value for name, value in options.items() if name not in _SEQUENCE}, known)
    for name in _SEQUENCE:
        if name in options and is_set(options[name]):
            raise InvalidOption(f"parameters[{name!r}]: found a value; allowed: none, for rows do not know of each other")


def _read_policy(options: Parameters) -> Policy | None:
    name = read_text("parameters", options, "policy")
    if name and name not in Policy.__members__:
        raise InvalidOption(f"parameters['policy']: found {quote(name)}; allowed: {', '.join(Policy.__members__)}")
    return Policy[name] if name else None


def _read_priority(options: Parameters) -> Priority:
    """Read Triton's numbers: 1 goes first, 0 means the default."""
    number = read_whole("parameters", options, "priority") or 2
    return {1: Priority.HIGH, 2: Priority.NORMAL}.get(number, Priority.LOW)


def _read_wanted(message: pb.ModelInferRequest, model: Model, regions: Regions) -> tuple[Wanted, ...]:
    known = {output.name: output for output in model.outputs}
    if not message.outputs:
        return tuple(Wanted(output, 0, None) for output in model.outputs if output.is_default)
    wanted: list[Wanted] = []
    for request in message.outputs:
        field = f"outputs[{quote(request.name)}]"
        output = known.pop(request.name, None)
        if output is None:
            raise InvalidOption(f"{field}: no such output, or found twice; allowed: {', '.join(o.name for o in model.outputs)}")
        check_known(f"{field}.parameters", request.parameters, (CLASSIFICATION, *PARAMETERS))
        top_k = read_whole(f"{field}.parameters", request.parameters, CLASSIFICATION)
        if top_k is not None and not (top_k and output.is_scores):
            allowed = "at least 1" if output.is_scores else "none, for it has no scores by class"
            raise InvalidOption(f"{field}.parameters[{CLASSIFICATION!r}]: found {top_k}; allowed: {allowed}")
        wanted.append(Wanted(output, top_k or 0, regions.find_place(field, request.parameters)))
    return tuple(wanted)


def _read_column(source: Source, kind: str) -> Sequence[RawInput]:
    """Read an input of all rows."""
    tensor, field = source.tensor, source.field
    raw = source.raw.read() if isinstance(source.raw, Place) else source.raw
    if raw is None:
        values = read_contents(field, tensor.datatype, tensor.shape, tensor.contents)
    else:
        values = read_raw(field, tensor.datatype, tensor.shape, raw)
    if tensor.datatype != BYTES:
        return values  # type: ignore[return-value]  # an array is a sequence of its rows
    return _READERS[kind](field, values, tensor.shape[0])  # type: ignore[arg-type]


def _read_images(field: str, elements: Elements, rows: int) -> Sequence[RawInput]:
    if len(elements) != rows:
        raise InvalidInput(f"{field}: found {len(elements)} images for {rows} rows; allowed: one for each")
    return elements


def _read_texts(field: str, elements: Elements, rows: int) -> Sequence[RawInput]:
    each = len(elements) // rows
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{field}: found bytes that are no UTF-8 ({error.reason}); allowed: texts in UTF-8") from None
    if each == 0:
        raise InvalidInput(f"{field}: found no text; allowed: at least one for each row")
    return texts if each == 1 else [tuple(texts[row * each : (row + 1) * each]) for row in range(rows)]


def _refuse_bytes(field: str, elements: Elements, rows: int) -> Sequence[RawInput]:
    raise InvalidInput(f"{field}.datatype: found {BYTES}; allowed: a tensor of numbers, as the metadata says")


_READERS = {"image": _read_images, "text": _read_texts, "tensor": _refuse_bytes}
