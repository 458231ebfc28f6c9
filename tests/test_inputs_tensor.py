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
from twinfer_server.inputs import INPUT_KINDS, InputKind, InputLimits, make_input
from twinfer_server.rows import RawInput
from twinfer_server.spec import TensorInputSpec

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def make(dtype: str = "float32", shape: tuple[int, ...] = (2, 3), max_samples: int = 1) -> InputKind[Any]:
    document = {"kind": "tensor", "dtype": dtype, "shape": list(shape), "max_samples": max_samples}
    spec = TensorInputSpec.model_validate(document)
    return make_input("vision", "x", spec, Path(), InputLimits())


def test_the_table_has_the_kinds_of_the_spec() -> None:
    assert set(INPUT_KINDS) == {"image", "text", "tensor"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_each_dtype_reaches_the_member_as_it_was_sent(dtype: str) -> None:
    kind = make(dtype)
    value = np.array([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    [samples] = kind.prepare(kind.decode(value))
    assert samples.shape == (1, 2, 3)
    [staging] = kind.staging
    [argument] = kind.arguments([torch.from_numpy(samples)])
    assert (staging.dtype, staging.shape, staging.is_ragged) == (argument.dtype, (2, 3), False)
    assert np.array_equal(argument.numpy()[0], value)


def test_a_scalar_is_a_tensor_too() -> None:
    kind = make(shape=())
    [samples] = kind.prepare(kind.decode(np.array(3.0, dtype=np.float32)))
    assert samples.tolist() == [3.0]


def test_it_tells_callers_its_dtype_and_shape() -> None:
    kind = make("int16", (4,))
    assert (kind.tensor_dtype, kind.tensor_shape, kind.max_tokens) == ("int16", (4,), 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param("seven", "found the text 'seven'; allowed: a tensor float32 [2, 3]", id="text"),
        pytest.param(b"\x89PNG", "found 4 bytes; allowed: a tensor float32 [2, 3]", id="image bytes"),
        pytest.param(np.zeros((2, 3)), "found dtype float64; allowed: float32", id="wrong dtype"),
        pytest.param(np.zeros((2, 3), ">f4"), "found dtype >f4; allowed: float32", id="wrong byte order"),
        pytest.param(np.zeros((6,), np.float32), "found rank 1 (shape [6]); allowed: rank 2 (shape [2, 3])", id="wrong rank"),
        pytest.param(np.zeros((3, 2), np.float32), "found shape [3, 2]; allowed: [2, 3]", id="wrong shape"),
        pytest.param(np.zeros((0, 3), np.float32), "found shape [0, 3]; allowed: [2, 3]", id="empty"),
        pytest.param(np.full((2, 3), np.nan, np.float32), "found NaN or an infinity", id="NaN"),
        pytest.param(np.full((2, 3), -np.inf, np.float32), "found NaN or an infinity", id="infinity"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(value: RawInput, message: str) -> None:
    kind = make()
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
    ("shape", "message"),
    [
        pytest.param((5, 2, 3), "found 5 samples; allowed: 1 to 4", id="too many"),
        pytest.param((0, 2, 3), "found 0 samples; allowed: 1 to 4", id="none"),
        pytest.param((2, 3, 2), "found shape [2, 3, 2]; allowed: [1 to 4, 2, 3]", id="of another shape"),
        pytest.param((3, 2), "found shape [3, 2]; allowed: [2, 3]", id="one of another shape"),
        pytest.param(
            (6,), "found rank 1 (shape [6]); allowed: rank 2 (shape [2, 3]), or 3: [samples, *shape]", id="of another rank"
        ),
    ],
)
def test_samples_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    kind = make(max_samples=4)
    with pytest.raises(InvalidInput, match=re.escape(f"inputs['x']: {message}")):
        kind.prepare(kind.decode(np.zeros(shape, np.float32)))


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
