"""Tensor inputs: what fits the spec passes untouched; what does not is refused by name."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from twinfer_server.errors import InvalidInput, Stage
from twinfer_server.inputs import BufferSpec, InputKind, InputLimits, make_input
from twinfer_server.spec import TensorInputSpec
from twinfer_server.types import RawInput

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def make(dtype: str = "float32", shape: tuple[int, ...] = (2, 3), max_samples: int = 1, **ends: Any) -> InputKind[Any]:
    document = {"kind": "tensor", "dtype": dtype, "shape": list(shape), "max_samples": max_samples, **ends}
    spec = TensorInputSpec.model_validate(document)
    return make_input("vision", "x", spec, Path(), InputLimits(), torch.device("cpu"))


@pytest.mark.parametrize("shape", [(2, 3), ()], ids=["of rank 2", "a scalar"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_each_dtype_reaches_the_member_as_it_was_sent(dtype: str, shape: tuple[int, ...]) -> None:
    kind = make(dtype, shape)
    assert (kind.tensor_dtype, kind.tensor_shape) == (dtype, shape)
    value = np.resize(np.array([0, 1, 1, 0, 1], dtype=dtype), shape)
    [samples] = kind.prepare(kind.decode(value))
    assert samples.shape == (1, *shape)
    [argument] = kind.arguments([torch.from_numpy(samples)])
    assert kind.buffers == (BufferSpec("values", argument.dtype, shape),)
    assert np.array_equal(argument.numpy()[0], value)


ONE, SEVERAL = "a tensor float32 [2, 3]", "a tensor float32 [2, 3] or [1 to 4, 2, 3]"


@pytest.mark.parametrize(
    ("value", "max_samples", "message"),
    [
        pytest.param("seven", 1, f"found the text 'seven'; allowed: {ONE}", id="text"),
        pytest.param(b"\x89PNG", 1, f"found 4 bytes; allowed: {ONE}", id="image bytes"),
        pytest.param(np.zeros((2, 3)), 1, f"found a tensor float64 [2, 3]; allowed: {ONE}", id="wrong dtype"),
        pytest.param(np.zeros((2, 3), ">f4"), 1, f"found a tensor >f4 [2, 3]; allowed: {ONE}", id="wrong byte order"),
        pytest.param(np.zeros(6, np.float32), 1, f"found a tensor float32 [6]; allowed: {ONE}", id="wrong rank"),
        pytest.param(np.zeros((3, 2), np.float32), 1, f"found a tensor float32 [3, 2]; allowed: {ONE}", id="wrong shape"),
        pytest.param(np.zeros((0, 3), np.float32), 1, f"found a tensor float32 [0, 3]; allowed: {ONE}", id="empty"),
        pytest.param(np.zeros((1, 2, 3), np.float32), 1, f"found a tensor float32 [1, 2, 3]; allowed: {ONE}", id="stacked"),
        pytest.param(np.full((2, 3), np.nan, np.float32), 1, "found NaN or an infinity", id="NaN"),
        pytest.param(np.full((2, 3), -np.inf, np.float32), 1, "found NaN or an infinity", id="infinity"),
        pytest.param(np.zeros((5, 2, 3), np.float32), 4, f"found a tensor float32 [5, 2, 3]; allowed: {SEVERAL}", id="too many"),
        pytest.param(np.zeros((0, 2, 3), np.float32), 4, f"found a tensor float32 [0, 2, 3]; allowed: {SEVERAL}", id="none"),
        pytest.param(np.zeros((2, 3, 2), np.float32), 4, f"found a tensor float32 [2, 3, 2]; allowed: {SEVERAL}", id="wrong ones"),
        pytest.param(np.zeros((3, 2), np.float32), 4, f"found a tensor float32 [3, 2]; allowed: {SEVERAL}", id="a wrong one"),
        pytest.param(np.zeros(6, np.float32), 4, f"found a tensor float32 [6]; allowed: {SEVERAL}", id="a flat one"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(value: RawInput, max_samples: int, message: str) -> None:
    kind = make(max_samples=max_samples)
    with pytest.raises(InvalidInput, match=re.escape(f"inputs['x']: {message}")) as refusal:
        kind.prepare(kind.decode(value))
    assert refusal.value.stage is Stage.DECODE


@pytest.mark.parametrize("shape", [(2, 3), ()], ids=["of rank 2", "scalars"])
def test_a_tensor_of_one_more_dimension_is_several_samples(shape: tuple[int, ...]) -> None:
    kind = make(shape=shape, max_samples=4)
    assert (kind.max_samples, kind.tensor_shape) == (4, shape)
    several = np.arange(4 * math.prod(shape), dtype=np.float32).reshape(4, *shape)
    assert np.array_equal(kind.prepare(kind.decode(several))[0], several)
    assert np.array_equal(kind.prepare(kind.decode(several[:1]))[0], several[:1])
    assert np.array_equal(kind.prepare(kind.decode(several[2]))[0], several[2:3])


@pytest.mark.parametrize(
    ("dtype", "ends", "good", "bad", "message"),
    [
        ("int64", {"min": 0, "max": 9}, [0, 9], [3, 10], "the number 10; allowed: at least 0 and at most 9"),
        ("int32", {"min": 0}, [0, 2**31 - 1], [-1, 3], "the number -1; allowed: at least 0"),
        ("uint8", {"max": 250}, [0, 250], [251, 0], "the number 251; allowed: at most 250"),
        ("float32", {"min": -0.1, "max": 0.1}, [-0.1, 0.1], [0.0, 0.25], "the number 0.25; allowed: at least -0.1 and at most 0.1"),
        ("float64", {"max": 1e6}, [-1e300, 1e6], [1e6, 2e6], "the number 2000000.0; allowed: at most 1000000.0"),
    ],
    ids=["whole numbers", "only the least", "only the greatest", "numbers that float32 has not", "large numbers"],
)
def test_numbers_beyond_the_range_are_refused(
    dtype: str, ends: dict[str, Any], good: list[float], bad: list[float], message: str
) -> None:
    kind = make(dtype, (2,), max_samples=2, **ends)
    for value in (np.array(good, dtype), np.array([good, good], dtype)):
        assert np.array_equal(kind.prepare(kind.decode(value))[0].reshape(value.shape), value)
    for value in (np.array(bad, dtype), np.array([good, bad], dtype)):
        with pytest.raises(InvalidInput, match=re.escape(f"inputs['x']: found {message}") + "$"):
            kind.prepare(kind.decode(value))


@given(
    dtype=st.sampled_from(["uint8", "int64", "float32"]),
    ends=st.fixed_dictionaries({}, optional={"min": st.integers(0, 100), "max": st.integers(100, 200)}),
    seed=st.integers(0, 3),
)
def test_an_example_is_within_the_range_and_shows_both_its_ends(dtype: str, ends: dict[str, Any], seed: int) -> None:
    kind = make(dtype, **ends)
    [sample] = kind.example(seed, 0)
    [same] = kind.prepare(sample[0])
    assert np.array_equal(same, sample)
    if dtype != "float32" and len(ends) == 2 and seed < 2:
        assert (sample == [ends["max"], ends["min"]][seed]).all()


@pytest.mark.parametrize(
    ("dtype", "ends", "message"),
    [
        ("bool", {"min": 0}, "min: found 0 for dtype 'bool'; allowed: none"),
        ("int64", {"max": 9.5}, f"max: found 9.5 for dtype 'int64'; allowed: a whole number, {-(2**63)} to {2**63 - 1}"),
        ("int64", {"max": 2**63}, "max: found 9.22337203685478e+18 for dtype 'int64'; allowed: a whole number, -"),
        ("uint8", {"min": -1}, "min: found -1 for dtype 'uint8'; allowed: a whole number, 0 to 255"),
        ("float16", {"max": 1e6}, "max: found 1000000 for dtype 'float16'; allowed: -65504.0 to 65504.0"),
        ("int8", {"min": 9, "max": 0}, "min: found 9 beside max = 0; allowed: a min that is not above max"),
    ],
    ids=["of truth values", "half a number", "above the largest dtype", "below the dtype", "above the dtype", "of nothing"],
)
def test_a_range_that_cannot_be_is_refused(dtype: str, ends: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(dtype, **ends)


@given(
    value=st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    )
)
def test_any_tensor_passes_as_it_is_or_is_refused(value: np.ndarray[Any, Any]) -> None:
    kind = make("float16", (1, 2))
    try:
        [samples] = kind.prepare(kind.decode(value))
    except InvalidInput:
        assert value.dtype != np.float16 or value.shape != (1, 2) or not np.isfinite(value).all()
    else:
        assert np.array_equal(samples[0], value)
        assert np.isfinite(samples).all()
