"""HTTP/2 frames written by hand, for what no client library would send."""

import socket
import struct
from collections.abc import Iterator, Sequence

from tests.calls import PATIENCE_SECONDS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


def write_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def write_headers(headers: Sequence[tuple[str, str]]) -> bytes:
    """Write header fields as HPACK literals, neither indexed nor compressed (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _write_text(name) + _write_text(value) for name, value in headers)


def _write_text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def read_frames(connection: socket.socket) -> Iterator[tuple[int, int, int]]:
    """Yield kind, flags and stream of each frame until the connection ends."""
    with connection.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            length, (kind, flags, stream) = int.from_bytes(head[:3]), struct.unpack(">BBI", head[3:])
            file.read(length)
            yield kind, flags, stream


def has_answer(address: str, method: str, headers: Sequence[tuple[str, str]], *, is_whole: bool = True) -> bool:
    """Make a call with these headers and an empty message, or one that never ends; return whether a message came back."""
    host, _, port = address.rpartition(":")
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x")]
    fields = write_headers([*pseudo, ("te", "trailers"), ("content-type", "application/grpc"), *headers])
    message = write_frame(DATA, END_STREAM, 1, bytes(5)) if is_whole else write_frame(DATA, 0, 1, bytes(4) + b"\x10")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(PREFACE + write_frame(SETTINGS, 0, 0) + write_frame(HEADERS, END_HEADERS, 1, fields) + message)
        for kind, flags, stream in read_frames(connection):
            if kind == DATA and stream == 1:
                return True
            if kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
                return False
    return False
