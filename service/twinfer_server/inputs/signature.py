"""What bytes that are no picture seem to be, by how they begin."""

import base64
import binascii
import re

PICTURES = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}  # fmt: skip
OTHERS = {
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL", b"%PDF": "PDF", b"%!PS": "PostScript", b"8BPS": "Photoshop",
    b"\0\0\x01\0": "an icon (ICO)", b"DDS ": "DDS", b"qoif": "QOI", b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR",
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "ZIP", b"7z\xbc\xaf\x27\x1c": "7z", b"\x28\xb5\x2f\xfd": "Zstandard", b"BZh": "bzip2",
    b"\xfd7zXZ": "xz", b"\x93NUMPY": "NumPy", b"\x1aE\xdf\xa3": "WebM or Matroska, a video", b"OggS": "Ogg, a video or sound",
    b"ID3": "MP3, a sound",
}  # fmt: skip
BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC",
    b"hevx": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"crx ": "a camera's raw picture (CR3)", b"qt  ": "QuickTime, a video",
}  # fmt: skip
"""Of the files that begin with a box `ftyp`; every other brand is a video's."""
MARKUP = {"<svg": "SVG", "<!doctype html": "HTML", "<html": "HTML", "<?xml": "XML"}
HEAD_BYTES = 1024


def name_format(content: bytes) -> str:
    """Return what the bytes seem to be: "PNG", "HEIC", "base64 text of a PNG", "text"; empty where nothing is known of them."""
    head = content[:HEAD_BYTES]
    return _name_bytes(head) or _name_text(head)


def name_base64(text: str) -> str:
    """Return what the base64 text, with or without "data:...;base64," before it, seems to be; empty where it is none."""
    encoded = re.match(r"[\s\"']*(data:[\w/+.;=-]*,)?\s*([A-Za-z0-9+/_\s-]{12,})", text)
    if not encoded:
        return ""
    packed = re.sub(r"\s", "", encoded[2]).replace("-", "+").replace("_", "/")[:160]
    try:
        content = base64.b64decode(packed[: len(packed) // 4 * 4])
    except binascii.Error:
        return ""
    name = _name_bytes(content)
    return f"base64 text of {name}" if name else "base64 text" if encoded[1] else ""


def _name_bytes(head: bytes) -> str:
    for beginning, name in (PICTURES | OTHERS).items():
        if head.startswith(beginning):
            return name
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else "a RIFF file, a video or sound"
    if head[4:8] == b"ftyp":
        return _name_brand(head)
    if head[128:132] == b"DICM":
        return "DICOM"
    return "PNM" if re.match(rb"P[1-7FfHh]\s", head) else ""


def _name_brand(head: bytes) -> str:
    """Name a file of boxes; where the main brand says no more than "pictures", by those that it is compatible with."""
    size = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(size, len(head)) - 3, 4))]
    if brands[0] in (b"mif1", b"msf1"):
        brands = sorted(brands, key=lambda brand: BRANDS.get(brand, "HEIF") == "HEIF")
    return BRANDS.get(brands[0], "MP4, a video")


def _name_text(head: bytes) -> str:
    """Name a text by its markup, or as base64; empty for bytes that are no text."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # and not in the middle of the last letter
            return ""
        text = head[: error.start].decode("utf-8-sig")
    if any(letter < " " and letter not in "\t\n\r\f" for letter in text):
        return ""
    folded = text.lstrip().lower()
    for beginning, name in MARKUP.items():
        if folded.startswith(beginning):
            return "SVG" if "<svg" in folded else name
    return name_base64(text) or ("JSON" if folded[:1] in ("{", "[") else "text")
