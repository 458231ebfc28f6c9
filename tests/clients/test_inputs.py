"""What the client sends for a Python value, and for an option."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

import twinfer
from twinfer import make_request
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2


def sent_image(image: Image.Image) -> bytes:
    return make_request({"image": image}).inputs["image"].image


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "CMYK", "YCbCr", "HSV"])
def test_a_pillow_image_of_any_mode_is_sent_as_png(mode: str) -> None:
    decoded = Image.open(io.BytesIO(sent_image(Image.new(mode, (3, 2)))))
    assert (decoded.format, decoded.size) == ("PNG", (3, 2))


@pytest.mark.parametrize(("mode", "dtype"), [("L", "u1"), ("I;16", "<u2"), ("I;16B", ">u2")])
def test_a_pillow_image_keeps_its_pixels(mode: str, dtype: str) -> None:
    pixels = [7, 30, 255] if mode == "L" else [7, 300, 65535]
    image = Image.frombytes(mode, (3, 1), np.array(pixels, dtype=dtype).tobytes())
    assert np.asarray(Image.open(io.BytesIO(sent_image(image)))).tolist() == [pixels]


@pytest.mark.parametrize("mode", ["F", "I", "I;16N"])
def test_a_pillow_image_without_a_defined_white_is_refused(mode: str) -> None:
    with pytest.raises(TypeError, match=rf"^inputs\['image'\] is a PIL image of mode '{mode}'; allowed: 8 or 16 bits per channel"):
        make_request({"image": Image.new(mode, (3, 2))})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_pillow_image_is_turned_upright_like_its_file(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    corner = np.zeros((16, 24, 3), dtype=np.uint8)
    corner[:8, :8] = 255
    file = io.BytesIO()
    Image.fromarray(corner).save(file, file_format, exif=exif)
    sent = io.BytesIO(sent_image(Image.open(file)))
    found, expected = (np.asarray(ImageOps.exif_transpose(Image.open(content))) for content in (sent, file))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 8


# --- values of other types --------------------------------------------------------------------------------------------


def test_values_are_sent_by_their_type(tmp_path: Path) -> None:
    (tmp_path / "five.png").write_bytes(b"pixels")
    request = make_request(
        {
            "path": tmp_path / "five.png",
            "bytes": b"pixels",
            "memory": memoryview(b"pixels"),
            "text": "five.png",
            "texts": ["five", "six"],
            "pair": ("five", "six"),
            "tensor": tensor_pb2.Tensor(dtype="DATA_TYPE_BF16", shape=[1], data=b"\x80\x3f"),
        }
    )
    sent = {name: value.WhichOneof("value") for name, value in request.inputs.items()}
    images, texts = dict.fromkeys(("path", "bytes", "memory"), "image"), dict.fromkeys(("texts", "pair"), "texts")
    assert sent == {**images, "text": "text", **texts, "tensor": "tensor"}
    assert {request.inputs[name].image for name in images} == {b"pixels"}
    assert [list(request.inputs[name].texts.values) for name in texts] == [["five", "six"]] * 2
    assert request.inputs["text"].text == "five.png"  # a str is a text, whatever it looks like


@pytest.mark.parametrize(
    ("array", "dtype", "shape", "data"),
    [
        pytest.param(np.array([[1, 2], [3, 4]], np.uint8), "UINT8", [2, 2], b"\1\2\3\4", id="as it lies"),
        pytest.param(np.array([[1, 2], [3, 4]], np.uint8).T, "UINT8", [2, 2], b"\1\3\2\4", id="transposed"),
        pytest.param(np.arange(6, dtype=np.int8)[::2], "INT8", [3], b"\0\2\4", id="strided"),
        pytest.param(np.array([1], ">i4"), "INT32", [1], b"\1\0\0\0", id="big-endian int"),
        pytest.param(np.array([1.0], ">f8"), "FP64", [1], b"\0\0\0\0\0\0\xf0\x3f", id="big-endian float"),
        pytest.param(np.array(7, np.int64), "INT64", [], b"\7\0\0\0\0\0\0\0", id="no dimensions"),
        pytest.param(np.float32(1), "FP32", [], b"\0\0\x80\x3f", id="a scalar"),
        pytest.param(np.array([True, False]), "BOOL", [2], b"\1\0", id="bool"),
        pytest.param(np.array([1], np.float16), "FP16", [1], b"\0\x3c", id="half"),
        pytest.param(np.array([256], np.int16), "INT16", [1], b"\0\1", id="short"),
        pytest.param(np.zeros((0, 3), np.float32), "FP32", [0, 3], b"", id="empty"),
    ],
)
def test_a_numpy_array_is_sent_row_major_and_little_endian(array: Any, dtype: str, shape: list[int], data: bytes) -> None:
    sent = make_request({"pixels": array}).inputs["pixels"].tensor
    assert (tensor_pb2.DataType.Name(sent.dtype), list(sent.shape), sent.data) == (f"DATA_TYPE_{dtype}", shape, data)


@pytest.mark.parametrize("value", [5, None, ["fve", 5], {"fve"}, object()], ids=["an int", "None", "a list", "a set", "an object"])
def test_a_value_of_another_type_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"inputs\['text'\] is a {type(value).__name__}; allowed: a pathlib.Path"):
        make_request({"text": value})


def test_a_dtype_that_the_contract_lacks_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"inputs\['pixels'\] has the dtype complex64; allowed: bool, uint8"):
        make_request({"pixels": np.zeros(2, np.complex64)})


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_is_sent() -> None:
    own: twinfer.requests.Options = {
        "request_id": "r1", "ensemble": "digits", "version": 3, "policy": "require_all", "priority": "high", "top_k": 2,
        "member_predictions": True, "explain": True, "fusion_weights": {"vision": 1.0},
    }  # fmt: skip
    assert make_request({"text": "fve"}, timeout=0.25, **own) == pb.InferRequest(
        request_id="r1", ensemble="digits", version=3, inputs={"text": pb.Input(text="fve")},
        options={
            "policy": "POLICY_REQUIRE_ALL", "priority": "PRIORITY_HIGH", "top_k": 2, "member_predictions": True, "explain": True,
            "fusion_weights": {"vision": 1.0}, "timeout": {"nanos": 250_000_000},
        },
    )  # fmt: skip
    fields = {*pb.InferRequest.DESCRIPTOR.fields_by_name, *pb.InferOptions.DESCRIPTOR.fields_by_name}
    assert own.keys() == set(twinfer.requests.Options.__annotations__) == fields - {"inputs", "options", "timeout"}


@pytest.mark.parametrize("option", ["policy", "priority"])
def test_an_unknown_choice_is_refused_here(option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option} is 'urgent'; allowed: "):
        make_request({}, **{option: "urgent"})  # type: ignore[arg-type]
