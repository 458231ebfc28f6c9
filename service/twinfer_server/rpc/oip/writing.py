"""From answers to a response of the protocol: outputs stacked row on row, in the order in which they were asked for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...types import Array, Response
from . import grpc_service_pb2 as pb
from .datatypes import BYTES, Elements, join_elements
from .models import OutputTensor, Role
from .reading import Call, Wanted
from .regions import BYTE_SIZE, OFFSET, REGION

Values = NDArray[np.float32] | None
"""What an output holds for one row; None where there is nothing."""


def write_response(call: Call, answers: Sequence[Response], labels: Sequence[str]) -> pb.ModelInferResponse:
    """Write the answers to a call's rows; raises InvalidOption where an output does not fit its place in shared memory."""
    response = pb.ModelInferResponse(model_name=call.model.name, model_version=call.model.version, id=call.request_id)
    for wanted in call.wanted:
        datatype, shape, data = _write_output(wanted, answers, labels)
        output = response.outputs.add(name=wanted.output.name, datatype=datatype, shape=shape)
        if wanted.place is not None:
            wanted.place.write(data)
            output.parameters[REGION].string_param = wanted.place.region.name
            output.parameters[BYTE_SIZE].int64_param = len(data)
            output.parameters[OFFSET].int64_param = wanted.place.offset
        response.raw_output_contents.append(b"" if wanted.place is not None else data)
    return response


def _write_output(wanted: Wanted, answers: Sequence[Response], labels: Sequence[str]) -> tuple[str, Sequence[int], bytes]:
    """Give an output's datatype, shape and bytes."""
    output = wanted.output
    if output.role is Role.DEGRADED:
        flags = np.array([[answer.is_degraded] for answer in answers])
        return output.datatype, flags.shape, flags.tobytes()
    if output.role is Role.STATE:
        states = [answer.members[output.member].state.name.encode() for answer in answers]
        return output.datatype, (len(states), 1), join_elements(states)
    values = [_find_values(output, answer) for answer in answers]
    if wanted.top_k:
        return _write_best(values, wanted.top_k, labels)
    stacked = _stack(values, output.dims)
    return output.datatype, stacked.shape, stacked.astype("<f4", copy=False).tobytes()


def _find_values(output: OutputTensor, answer: Response) -> Values:
    return answer.fused if output.role is Role.FUSED else answer.members[output.member].output


def _stack(values: Sequence[Values], dims: Sequence[int]) -> Array:
    """Put rows on top of each other, with NaN where one has nothing, or less than others."""
    there = [row for row in values if row is not None]
    if len(there) == len(values) and len({row.shape for row in there}) == 1:
        return np.stack(there) if len(there) > 1 else there[0][np.newaxis]
    shape = [max(sizes) for sizes in zip(*(row.shape for row in there), strict=True)] if there else [max(size, 0) for size in dims]
    stacked = np.full((len(values), *shape), np.nan, np.float32)
    for place, row in zip(stacked, values, strict=True):
        if row is not None:
            place[tuple(slice(size) for size in row.shape)] = row
    return stacked


def _write_best(values: Sequence[Values], top_k: int, labels: Sequence[str]) -> tuple[str, Sequence[int], bytes]:
    """Write each row's best classes as texts, "score:index" and ":label" where there are labels; empty ones where it has none."""
    count = max((min(top_k, len(row)) for row in values if row is not None), default=1)
    elements: Elements = []
    for row in values:
        best = [] if row is None else np.argsort(-row, kind="stable")[:count].tolist()
        elements += [f"{row[index]:f}:{index}{f':{labels[index]}' if labels else ''}".encode() for index in best]  # type: ignore[index]
        elements += [b""] * (count - len(best))
    return BYTES, (len(values), count), join_elements(elements)
