"""HTTP/2's frames: their kinds, flags, errors and settings, and how a server writes them. Source: RFC 9113, sections 4, 6 and 7."""

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER = Struct(">HBBBI")
"""A frame's header: the upper 16 bits of its length, the lower 8, its kind, its flags and its stream."""
HEADER_BYTES = HEADER.size
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
DEFAULT_TABLE_BYTES = 4_096
MAX_WINDOW = 2**31 - 1
MAX_FRAME_BYTES = 2**24 - 1
MAX_FAULT_LETTERS = 200


class Kind:
    """What a frame is."""

    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)


class Flag:
    """What else is said of it."""

    ACK = END_STREAM = 0x01
    END_HEADERS = 0x04
    PADDED = 0x08
    PRIORITY = 0x20


class Setting:
    """What one side tells the other of itself."""

    HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(1, 7)


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The peer breaks the protocol, and nothing more can be made of what it sends."""

    def __init__(self, code: Code, text: str) -> None:
        """Say which rule is broken; what is long, such as what was found, is cut off."""
        super().__init__(text[:MAX_FAULT_LETTERS])
        self.code = code


def frame_header(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Write the header of a frame whose payload has `size` bytes."""
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return frame_header(kind, flags, stream, len(payload)) + payload


def settings_frame(settings: dict[int, int]) -> bytes:
    """Write what this side tells of itself."""
    pairs = (key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in settings.items())
    return frame(Kind.SETTINGS, 0, 0, b"".join(pairs))


def window_frame(stream: int, more_bytes: int) -> bytes:
    """Let the peer send so much more, on a stream or, for stream 0, in all."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, more_bytes.to_bytes(4, "big"))


def reset_frame(stream: int, code: Code) -> bytes:
    """End a stream in both directions."""
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway_frame(last_stream: int, code: Code, text: str) -> bytes:
    """Say which streams will still be answered, and why there will be no others."""
    return frame(Kind.GOAWAY, 0, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode())
