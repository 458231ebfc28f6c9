"""Bytes that are no picture are called what they seem to be."""

import base64
import gzip
import io
import json
import re
import struct
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import encode, make_kind
from twinfer_server.errors import InvalidInput
from twinfer_server.inputs import InputLimits
from twinfer_server.inputs.signature import name_base64, name_format

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
PNG, JPEG, WEBP, GIF, TIFF, BMP = (encode(PICTURE, format) for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"))
FRAME = JPEG[JPEG.index(b"\xff\xc0") :][:4]
"""The beginning of a JPEG's header, behind which are its bits."""


def box(brand: bytes, *others: bytes) -> bytes:
    body = brand + b"\0\0\0\0" + b"".join(others)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(40)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", PNG)
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="6"/>'
SEEMS = {
    "HEIC": (box(b"heic", b"mif1", b"heic"), "they seem to be HEIC"),
    "HEIC of a container's brand": (box(b"mif1", b"mif1", b"heic"), "they seem to be HEIC"),
    "HEIF": (box(b"mif1", b"mif1", b"miaf"), "they seem to be HEIF"),
    "MP4": (box(b"isom", b"mp42"), "they seem to be MP4, a video"),
    "SVG": (SVG, "they seem to be SVG"),
    "SVG behind XML": (b'\xef\xbb\xbf<?xml version="1.0"?>\n' + SVG, "they seem to be SVG"),
    "XML": (b'<?xml version="1.0"?><a/>', "they seem to be XML"),
    "HTML": (b"\n<!DOCTYPE html><html>not found</html>", "they seem to be HTML"),
    "JPEG 2000": (encode(PICTURE, "JPEG2000"), "they seem to be JPEG 2000"),
    "JPEG 2000's stream": (b"\xff\x4f\xff\x51" + bytes(40), "they seem to be JPEG 2000"),
    "JPEG XL": (b"\xff\x0a" + bytes(40), "they seem to be JPEG XL"),
    "PDF": (b"%PDF-1.7\n", "they seem to be PDF"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "they seem to be PostScript"),
    "gzip": (gzip.compress(PNG), "they seem to be gzip"),
    "ZIP": (zipped(), "they seem to be ZIP"),
    "an icon": (encode(PICTURE, "ICO"), "they seem to be an icon (ICO)"),
    "PPM": (encode(PICTURE, "PPM"), "they seem to be PNM"),
    "sound": (b"RIFF\0\0\0\0WAVEfmt " + bytes(40), "they seem to be a RIFF file, a video or sound"),
    "DICOM": (bytes(128) + b"DICM" + bytes(40), "they seem to be DICOM"),
    "an array": (b"\x93NUMPY\x01\0" + bytes(40), "they seem to be NumPy"),
    "JSON": (json.dumps({"image": "x"}).encode(), "they seem to be JSON"),
    "text": (b"a cat", "they seem to be text"),
    "text in Unicode": ("ein Kätzchen".encode(), "they seem to be text"),
    "base64 of a PNG": (base64.b64encode(PNG), "they seem to be base64 text of PNG"),
    "base64 of a JPEG, in lines": (base64.encodebytes(JPEG), "they seem to be base64 text of JPEG"),
    "base64 of a WebP, for an address": (base64.urlsafe_b64encode(WEBP), "they seem to be base64 text of WEBP"),
    "base64 in quotes": (b'"' + base64.b64encode(GIF) + b'"', "they seem to be base64 text of GIF"),
    "a data URL": (b"data:image/png;base64," + base64.b64encode(PNG), "they seem to be base64 text of PNG"),
    "a data URL of SVG": (b"data:image/svg+xml;base64," + base64.b64encode(SVG), "they seem to be base64 text"),
    "noise": (b"\x01\x02\x99" * 9, "found 27 bytes that are no image, or only its beginning"),
    "a PNG cut off": (PNG[:20], "found 20 bytes that begin as PNG and cannot be read, or are only its beginning"),
    "a JPEG of 12 bits": (JPEG.replace(FRAME + b"\x08", FRAME + b"\x0c"), "cannot handle 12-bit layers"),
    "a BMP cut off": (BMP[:16], "begin as BMP and cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), SEEMS.values(), ids=SEEMS)
def test_a_refusal_says_what_the_bytes_seem_to_be_and_what_is_allowed(content: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)) as refusal:
        make_kind(size=[6, 8]).decode(content)
    assert str(refusal.value).startswith(f"inputs['image']: found {'' if 'found' in message else len(content)}")
    assert "; allowed: an image as JPEG, PNG, WEBP, GIF, BMP, TIFF" in str(refusal.value)


@pytest.mark.parametrize(
    "text", [base64.b64encode(PNG).decode(), f"data:image/png;base64,{base64.b64encode(PNG).decode()}"], ids=len
)
def test_a_text_that_is_a_picture_in_base64_is_called_so(text: str) -> None:
    with pytest.raises(InvalidInput, match="found base64 text of PNG; allowed: an image as"):
        make_kind(size=[6, 8]).decode(text)


def test_avif_is_read_where_pillow_can() -> None:
    flat = Image.new("RGB", (64, 48), (200, 100, 48))
    seen = make_kind(size=[48, 64]).decode(encode(flat, "AVIF", quality=95)).pixels
    assert np.abs(seen.astype(int) - (200, 100, 48)).max() <= 4
    with pytest.raises(InvalidInput, match="found an image of 64 x 48 pixels; allowed: at most 3071 pixels"):
        make_kind(InputLimits(max_image_pixels=3071), size=[48, 64]).decode(encode(flat, "AVIF"))
    with pytest.raises(InvalidInput, match=r"allowed: .*AVIF, or a tensor"):
        make_kind(size=[6, 8]).decode(b"a cat")


@given(
    st.binary(max_size=200)
    | st.sampled_from([content for content, _ in SEEMS.values()]).flatmap(lambda c: st.integers(0, len(c)).map(lambda n: c[:n]))
)
def test_any_bytes_have_a_name_or_none(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(name_format(content), str)


@given(st.text(max_size=100) | st.text("ABC+/=-_ \n", max_size=100))
def test_any_text_is_base64_of_something_or_not(text: str) -> None:
    assert isinstance(name_base64(text), str)
