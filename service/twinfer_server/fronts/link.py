"""The link between a front and the process that owns the device: small frames over a socket, which also wake the other side.

Rows and answers lie in shared memory; a frame says where. What a front sends is never unpickled: only the device process, which
has started the fronts, pickles what it has to tell them.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import cast


class Op(IntEnum):
    """What a frame is about."""

    ROW = 1
    """A front: a row lies at `offset`; `value` is its share of its request's size, in bytes."""
    CANCEL = 2
    """A front: the caller of the row `number` went away."""
    ANSWER = 3
    """The device process: what became of the row `number` lies at `offset`; it was written at `value`."""
    FREE = 4
    """Either: what lay at `offset` is no longer needed."""
    REPLIED = 5
    """A front: an answer has gone out, `value` seconds after its request came; the payload says where the time went."""
    FAILED = 6
    """A front: a row has ended with an error, which is the payload."""
    LISTENING = 7
    """A front: it listens at the address in the payload; an empty one means that it cannot."""
    READY = 8
    """A front: callers reach its engine."""
    DRAINED = 9
    """A front: nothing is in hand any more, and streams and watches have ended."""
    CONTROL = 10
    """The device process: an order, pickled in the payload."""


_HEAD = struct.Struct("<BQQId")


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    op: Op
    number: int
    offset: int
    value: float
    payload: bytes


class Link(asyncio.Protocol):
    """One end of a link. Event loop only."""

    def __init__(self, on_frame: Callable[[Frame], None], on_lost: Callable[[], None]) -> None:
        """`on_frame` is told of every frame; `on_lost`, once, of the other side's end, or of ours."""
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._unread = bytearray()

    def send(self, op: Op, number: int = 0, offset: int = 0, value: float = 0.0, payload: bytes = b"") -> None:
        """Send a frame; does nothing once the link is lost."""
        if self._transport is not None:
            self._transport.write(_HEAD.pack(op, number, offset, len(payload), value) + payload)

    def close(self) -> None:
        """End the link when what was sent has gone out."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)  # which uvloop's is without saying so

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of the end, and let go of who is told: with them goes the memory that they share with the other side."""
        self._transport = None
        self._on_lost()
        del self._on_frame, self._on_lost

    def data_received(self, data: bytes) -> None:
        """Take the stream apart."""
        if self._unread:
            self._unread += data
            data = bytes(self._unread)
        at = 0
        while len(data) - at >= _HEAD.size:
            op, number, offset, size, value = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + size
            if end > len(data):
                break
            self._on_frame(Frame(Op(op), number, offset, value, data[end - size : end]))
            at = end
        self._unread = bytearray(data[at:])
