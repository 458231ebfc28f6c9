"""The messages of a call: put together from the pieces in which they come. Source: "gRPC over HTTP2", Length-Prefixed-Message."""

import zlib
from collections import deque
from struct import Struct

import grpc
import numpy as np

from .heads import NO_RETRY, Status

PREFIX = Struct(">?I")
"""What stands before each message: whether it is compressed, and its length."""
ENCODINGS = {"gzip": 31, "deflate": 15}
"""The window bits by which zlib knows them; RFC 1951's deflate comes in zlib's own frame, as gRPC has it."""

Data = bytes | memoryview
"""A message; one that came in pieces was put together where it lies."""


class BadMessage(Exception):
    """What came is no message, or none that is taken."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        """Say how the call is to end."""
        super().__init__(text)
        self.status = Status(code, text, NO_RETRY if code is grpc.StatusCode.RESOURCE_EXHAUSTED else ())


class Inbox:
    """The messages that have come on one call and have not been taken yet, and the beginning of the next."""

    __slots__ = ("_is_compressed", "_max_bytes", "_partial", "_prefix", "complete", "missing_bytes")

    def __init__(self, max_bytes: int) -> None:
        """Refuse messages of more than `max_bytes`."""
        self._max_bytes = max_bytes
        self._prefix = b""
        self._partial: memoryview | None = None
        self._is_compressed = False
        self.missing_bytes = 0
        """What is still to come of the message whose beginning is here."""
        self.complete: deque[tuple[Data, bool]] = deque()
        """Each with whether it is compressed."""

    @property
    def partial_bytes(self) -> int:
        """The size of the message whose beginning is here."""
        return 0 if self._partial is None else len(self._partial)

    @property
    def is_between_messages(self) -> bool:
        """Whether no message has been cut off."""
        return self._partial is None and not self._prefix

    def add(self, data: bytes, begin: int, end: int) -> None:
        """Add the next piece, data[begin:end]; raises BadMessage."""
        if self._prefix:
            data, begin = self._prefix + data[begin:end], 0
            end, self._prefix = len(data), b""
        while begin < end:
            if self._partial is not None:
                at, size = len(self._partial) - self.missing_bytes, min(end - begin, self.missing_bytes)
                self._partial[at : at + size] = memoryview(data)[begin : begin + size]
                begin += size
                self.missing_bytes -= size
                if not self.missing_bytes:
                    self.complete.append((self._partial, self._is_compressed))
                    self._partial = None
                continue
            if end - begin < PREFIX.size:
                self._prefix = data[begin:end]
                return
            is_compressed, size = PREFIX.unpack_from(data, begin)
            begin += PREFIX.size
            if size > self._max_bytes:
                text = f"message: found {size} bytes; allowed: at most {self._max_bytes}"
                raise BadMessage(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            if size <= end - begin:
                self.complete.append((data[begin : begin + size], is_compressed))
                begin += size
            else:
                # Whole from the first, for what grows is moved; it takes no memory before something is written there.
                self._partial = memoryview(np.empty(size, dtype=np.uint8))  # type: ignore[arg-type]  # numpy 2.4 says so on 3.12 only
                self._is_compressed, self.missing_bytes = is_compressed, size


def decompress(data: Data, encoding: str, max_bytes: int) -> bytes:
    """Unfold a compressed message; raises BadMessage."""
    if encoding == "identity":
        raise BadMessage(grpc.StatusCode.INTERNAL, "message: found a compressed one on a call that says that there are none")
    if encoding not in ENCODINGS:
        text = f"grpc-encoding: found {encoding!r:.40} for a compressed message; allowed: {', '.join(ENCODINGS)}"
        raise BadMessage(grpc.StatusCode.UNIMPLEMENTED, text)
    unfolder = zlib.decompressobj(ENCODINGS[encoding])
    try:
        message = unfolder.decompress(data, max_bytes + 1)
    except zlib.error:
        raise BadMessage(grpc.StatusCode.INTERNAL, f"message: found what is no {encoding}") from None
    if len(message) > max_bytes:
        raise BadMessage(grpc.StatusCode.RESOURCE_EXHAUSTED, f"message: found more than {max_bytes} bytes once decompressed")
    if not unfolder.eof:
        raise BadMessage(grpc.StatusCode.INTERNAL, f"message: found {encoding} that breaks off")
    return message
