"""Received requests: whatever the bytes, protobuf and twinfer read the same; large tensors stay where they are."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2
from twinfer_server.rpc.codec import read_request
from twinfer_server.rpc.received import LARGE_BYTES, MAX_FIELDS, ReceivedRequest

ITEM_BYTES = {
    "DATA_TYPE_BOOL": 1, "DATA_TYPE_UINT8": 1, "DATA_TYPE_INT8": 1, "DATA_TYPE_INT16": 2, "DATA_TYPE_INT32": 4,
    "DATA_TYPE_INT64": 8, "DATA_TYPE_FP16": 2, "DATA_TYPE_BF16": 2, "DATA_TYPE_FP32": 4, "DATA_TYPE_FP64": 8,
}  # fmt: skip
NAMES = st.sampled_from(["", "a", "image", "ä"])
TENSORS = st.builds(
    tensor_pb2.Tensor,
    dtype=st.sampled_from(tensor_pb2.DataType.values()),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    data=st.binary(max_size=200),
)
INPUTS = st.one_of(
    st.builds(pb.Input, image=st.binary(max_size=200)),
    st.builds(pb.Input, text=st.text(max_size=20)),
    st.builds(pb.Input, tensor=TENSORS),
    st.just(pb.Input()),
)
REQUESTS = st.builds(
    pb.InferRequest,
    ensemble=st.text(max_size=3),
    version=st.integers(-(2**63), 2**63 - 1),
    inputs=st.dictionaries(NAMES, INPUTS, max_size=3),
    options=st.one_of(st.none(), st.builds(pb.InferOptions, explain=st.booleans(), top_k=st.integers(-5, 5))),
)


def put_together(received: ReceivedRequest) -> pb.InferRequest:
    """Put the data that was left out back into the message."""
    for name, data in received.large.items():
        assert not received.message.inputs[name].tensor.data
        received.message.inputs[name].tensor.data = bytes(data)
    return received.message


def check_reads_as_protobuf(data: bytes, large_bytes: int) -> None:
    try:
        expected = pb.InferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            ReceivedRequest.FromString(data, large_bytes)
        return
    assert put_together(ReceivedRequest.FromString(data, large_bytes)) == expected


@given(REQUESTS, st.integers(0, 100))
def test_every_request_reads_as_protobuf_reads_it(request_message: pb.InferRequest, large_bytes: int) -> None:
    check_reads_as_protobuf(request_message.SerializeToString(), large_bytes)


@given(REQUESTS, REQUESTS)
def test_two_requests_one_behind_the_other_are_merged_as_protobuf_merges_them(one: pb.InferRequest, other: pb.InferRequest) -> None:
    check_reads_as_protobuf(one.SerializeToString() + other.SerializeToString(), 0)


@given(REQUESTS, st.data())
def test_damaged_bytes_read_as_protobuf_reads_them(request_message: pb.InferRequest, data: st.DataObject) -> None:
    damaged = bytearray(request_message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    check_reads_as_protobuf(bytes(damaged), 0)


def test_a_large_tensor_stays_in_the_bytes_that_came() -> None:
    data = make_request({"a": np.arange(LARGE_BYTES, dtype=np.uint8), "b": np.ones(3)}).SerializeToString()
    received = ReceivedRequest.FromString(data)
    assert list(received.large) == ["a"]
    assert received.large["a"].obj is data
    assert put_together(received) == pb.InferRequest.FromString(data)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("name", ["x", "xy", "xyz", "wxyz"])  # of several lengths, so that the data lies at any address
def test_a_tensor_of_each_type_is_read_alike_where_it_came_and_as_protobufs_copy(dtype: str, name: str) -> None:
    tensor = tensor_pb2.Tensor(dtype=dtype, shape=[2, 24 // ITEM_BYTES[dtype]], data=bytes([0, 1, 1, 0, 0, 1, 0, 0] * 6))
    data = pb.InferRequest(inputs={name: pb.Input(tensor=tensor)}).SerializeToString()
    received = ReceivedRequest.FromString(data, 0)
    assert set(received.large) == {name}
    there = read_request(received.message, 0.0, None, large=received.large).inputs[name]
    copied = read_request(pb.InferRequest.FromString(data), 0.0, None).inputs[name]
    assert isinstance(there, np.ndarray)
    assert isinstance(copied, np.ndarray)
    assert there.dtype == copied.dtype
    np.testing.assert_array_equal(there, copied)


def test_every_type_is_read() -> None:
    assert {*ITEM_BYTES, "DATA_TYPE_UNSPECIFIED"} == {*tensor_pb2.DataType.keys()}


def test_a_small_request_is_left_to_protobuf() -> None:
    data = make_request({"a": np.arange(100)}).SerializeToString()
    assert ReceivedRequest.FromString(data) == ReceivedRequest(pb.InferRequest.FromString(data))


def test_a_request_of_very_many_fields_is_left_to_protobuf() -> None:
    data = make_request({"a": np.arange(100)}).SerializeToString() + b"\x78\x01" * MAX_FIELDS
    assert not ReceivedRequest.FromString(data, 0).large
    check_reads_as_protobuf(data, 0)
