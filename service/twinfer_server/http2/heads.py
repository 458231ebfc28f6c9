"""The heads of calls as they come and those of replies as they go. Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md), RFC 7541."""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import grpc
import hpack

from .frames import Code, ConnectionFault

Metadata = tuple[tuple[str, str | bytes], ...]
Fields = tuple[tuple[str, str], ...]
"""Header fields of HTTP, as they are written."""

MAX_HEAD_BYTES = 16 * 1024
"""Of one call, as HPACK counts them, as in gRPC's own servers; a call with more is refused."""
MAX_DECODED_BYTES = 2 * MAX_HEAD_BYTES
"""With more the connection ends: what a small block unfolds to is to fill neither the memory nor, in plain Python, the time."""
MAX_MEMO_BYTES = 2**16
"""Of heads that are remembered for a connection, with what they unfold to."""

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KIND = b"application/grpc"
_NOT_METADATA = {b"te", b"content-type"}
_SAFE_IN_MESSAGE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


NO_RETRY: Metadata = (("grpc-retry-pushback-ms", "-1"),)
"""Tells clients that retry what was refused by RESOURCE_EXHAUSTED that this would be again. Source: gRPC A6."""


class Status(NamedTuple):
    """How a call ends."""

    code: grpc.StatusCode
    details: str = ""
    metadata: Metadata = ()


@dataclass(frozen=True, slots=True)
class Head:
    """What a call begins with: the method's path, the time it may take, how its messages are compressed, and its metadata."""

    path: str
    timeout_seconds: float | None = None
    encoding: str = "identity"
    metadata: Metadata = ()
    http_refusal: Fields = ()
    """The answer to what is no call of gRPC."""
    refusal: Status | None = None
    """The answer to a call that cannot be served."""


class HeadReader:
    """Reads the heads of one connection, in the order in which they come, for each may refer to what came before.

    Clients write the same head again and again; one that adds nothing to HPACK's table means the same until another does.
    """

    def __init__(self) -> None:
        """Begin with an empty table."""
        self._decoder = hpack.Decoder(MAX_DECODED_BYTES)
        self._memo: dict[bytes, Head] = {}
        self._memo_bytes = 0

    def read(self, block: bytes) -> Head:
        """Read a head; raises ConnectionFault."""
        known = self._memo.get(block)
        if known is not None:
            return known
        fields, is_settled = self._decode(block)
        size = _count_bytes(fields)
        head = _make_head(fields, size)
        self._memo_bytes += len(block) + size
        if self._memo_bytes > MAX_MEMO_BYTES:
            self._forget()
        elif is_settled:
            self._memo[block] = head
        return head

    def skip(self, block: bytes) -> None:
        """Pass over trailers, which may refer to what came before, and what comes to them; raises ConnectionFault."""
        self._decode(block)

    def _decode(self, block: bytes) -> tuple[Sequence[tuple[bytes, bytes]], bool]:
        """Read names and values, and tell whether HPACK's table is as before; if not, nothing that is remembered holds."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        newest, many, most = entries[0] if entries else None, len(entries), table.maxsize
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, f"header block: {error}") from None
        # Entries are added in front, each a new one, and dropped behind.
        is_settled = newest is (entries[0] if entries else None) and (many, most) == (len(entries), table.maxsize)
        if not is_settled:
            self._forget()
        return fields, is_settled

    def _forget(self) -> None:
        self._memo.clear()
        self._memo_bytes = 0


def _count_bytes(fields: Sequence[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 32 for name, value in fields)


def _make_head(fields: Sequence[tuple[bytes, bytes]], size: int) -> Head:
    special = {name: value for name, value in fields if name.startswith((b":", b"grpc-")) or name in _NOT_METADATA}
    path = special.get(b":path", b"").decode("latin-1")
    if special.get(b":method") != b"POST":
        return Head(path, http_refusal=((":status", "405"), ("allow", "POST")))
    kind = special.get(b"content-type", b"")
    if kind != _KIND and not kind.startswith((_KIND + b"+", _KIND + b";")):  # others, as gRPC-Web's, begin so, too
        return Head(path, http_refusal=((":status", "415"),))
    if size > MAX_HEAD_BYTES:
        text = f"metadata: found more than {MAX_HEAD_BYTES} bytes; allowed: at most so many"
        return Head(path, refusal=Status(grpc.StatusCode.RESOURCE_EXHAUSTED, text, NO_RETRY))
    try:
        seconds = _read_timeout(special.get(b"grpc-timeout"))
        metadata = tuple(entry for name, value in fields if name not in special for entry in _read_entries(name, value))
    except ValueError as error:
        return Head(path, refusal=Status(grpc.StatusCode.INTERNAL, str(error)))
    return Head(path, seconds, special.get(b"grpc-encoding", b"identity").decode("latin-1"), metadata)


def _read_timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    match = _TIMEOUT.fullmatch(value)
    if not match:
        raise ValueError(f"grpc-timeout: found {value[:20]!r}; allowed: at most 8 digits and one of H, M, S, m, u, n")
    return int(match[1]) * _SECONDS[match[2]]


def _read_entries(name: bytes, value: bytes) -> Iterator[tuple[str, str | bytes]]:
    """Read a field of metadata; binary ones may have been joined on their way."""
    key = name.decode("ascii")
    if not key.endswith("-bin"):
        yield key, value.decode("latin-1")
        return
    for each in value.split(b","):
        try:
            yield key, base64.b64decode(each + b"=" * (-len(each) % 4), validate=True)
        except binascii.Error:
            raise ValueError(f"{key}: found what is not base64") from None


_ENCODER = hpack.Encoder()


def write_block(fields: Fields) -> bytes:
    """Write fields in HPACK so that it neither needs nor changes the table, whatever was written before."""
    return bytes(_ENCODER.encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields], huffman=False))


REPLY_FIELDS: Fields = ((":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", "identity,deflate,gzip"))
REPLY_BLOCK = write_block(REPLY_FIELDS)
OK_BLOCK = write_block((("grpc-status", "0"),))


def write_trailers(status: Status) -> Fields:
    """Write a status as the fields that end a call."""
    number: int = status.code.value[0]
    fields = [("grpc-status", str(number))]
    if status.details:
        fields.append(("grpc-message", quote_from_bytes(status.details.encode("utf-8", "replace"), safe=_SAFE_IN_MESSAGE)))
    for key, value in status.metadata:
        fields.append((key, base64.b64encode(value).rstrip(b"=").decode() if isinstance(value, bytes) else value))
    return tuple(fields)
