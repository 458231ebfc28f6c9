"""The protocol's tensors: whatever is written is read as it was, in either form, and anything else is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from twinfer_server.errors import InvalidInput
from twinfer_server.rpc.oip import grpc_service_pb2 as pb
from twinfer_server.rpc.oip.tensors import check_tensor, join_elements, read_contents, read_raw

LISTS = {
    "BOOL": ("?", "bool_contents"),
    "INT8": ("i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "UINT8": ("u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
}
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3)


@given(elements=st.lists(st.binary(max_size=20), max_size=8))
def test_elements_of_bytes_are_read_as_they_were_written(elements: list[bytes]) -> None:
    assert read_raw("x", "BYTES", [len(elements)], join_elements(elements)) == elements


@given(elements=st.lists(st.binary(max_size=9), max_size=4), count=st.integers(0, 5), cut=st.integers(-3, 40))
def test_bytes_that_are_not_so_many_elements_are_refused(elements: list[bytes], count: int, cut: int) -> None:
    whole = join_elements(elements)
    data = whole[:cut] if cut >= 0 else whole + bytes(-cut)
    try:
        found = read_raw("x", "BYTES", [count], data)
    except InvalidInput:
        assert (count, data) != (len(elements), whole)
    else:
        assert len(found) == count
        assert join_elements(found) == data  # type: ignore[arg-type]


@pytest.mark.parametrize("datatype", LISTS)
@given(data=st.data())
def test_raw_bytes_and_typed_elements_are_the_same_array(datatype: str, data: st.DataObject) -> None:
    dtype, field = LISTS[datatype]
    array = data.draw(arrays.arrays(np.dtype(dtype), SHAPES))
    check_tensor("x", datatype, array.shape)
    raw = read_raw("x", datatype, array.shape, array.tobytes())
    typed = read_contents("x", datatype, array.shape, pb.InferTensorContents(**{field: array.ravel().tolist()}))
    for found in (raw, typed):
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(raw, array)
    np.testing.assert_array_equal(typed, array)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
@given(data=st.data())
def test_an_element_beyond_its_datatype_is_refused_and_no_other(datatype: str, data: st.DataObject) -> None:
    dtype, field = LISTS[datatype]
    low, high = (0, 2**32 - 1) if field == "uint_contents" else (-(2**31), 2**31 - 1)
    values = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=4))
    limits = np.iinfo(dtype)
    contents = pb.InferTensorContents(**{field: values})  # type: ignore[arg-type]
    if all(limits.min <= value <= limits.max for value in values):
        assert read_contents("x", datatype, [len(values)], contents).tolist() == values  # type: ignore[union-attr]
    else:
        with pytest.raises(InvalidInput, match=f"{limits.min} to {limits.max}"):
            read_contents("x", datatype, [len(values)], contents)


@given(values=arrays.arrays(np.dtype("<f4"), SHAPES, elements=st.floats(width=32)))
def test_bf16_is_the_upper_half_of_fp32(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    halves = (values.view("<u4") >> 16).astype("<u2")
    found = read_raw("x", "BF16", values.shape, halves.tobytes())
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view("<u4"), values.view("<u4") & np.uint32(0xFFFF0000))


@given(
    datatype=st.sampled_from([*LISTS, "FP16", "BF16", "BYTES"]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=18),
)
def test_a_shape_that_passes_is_one_that_a_message_can_hold(datatype: str, shape: list[int]) -> None:
    try:
        check_tensor("x", datatype, shape)
    except InvalidInput:
        return
    assert 1 <= len(shape) <= 16
    assert math.prod(shape) < 2**31
