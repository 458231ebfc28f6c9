"""A connection: reads frames, keeps the books of both directions, and tells each call what is its own. Source: RFC 9113."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, cast

import grpc

from .call import Call
from .frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW,
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PREFACE,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
    frame,
    frame_header,
    goaway_frame,
    reset_frame,
    settings_frame,
    window_frame,
)
from .heads import MAX_DECODED_BYTES, MAX_HEAD_BYTES, Head, HeadReader, write_block, write_trailers

if TYPE_CHECKING:
    from .server import Server

logger = logging.getLogger(__name__)

OWN_FRAME_BYTES = 2**16
OWN_WINDOW = 2**30
"""Of the connection as a whole; what lies in memory is bounded by the windows of the calls."""
PREFACE_SECONDS = 20.0
"""How long a client may take to begin."""
MAX_WAITING_BYTES = 2**20
"""Of replies to what costs a client nothing to send; with more, and none of it read, the connection ends."""
SPARE_RESETS, RESETS_PER_SECOND = 1000.0, 100.0
"""How many calls a client may give up at once, and in the long run; with more it ends up on a new connection."""

SIZES = {Kind.PRIORITY: 5, Kind.RST_STREAM: 4, Kind.PING: 8, Kind.WINDOW_UPDATE: 4}
OF_CONNECTION = {Kind.SETTINGS, Kind.PING, Kind.GOAWAY}
OF_STREAM = {Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.PUSH_PROMISE, Kind.CONTINUATION}


class Connection(asyncio.Protocol):
    """One client's connection. Event loop only."""

    def __init__(self, server: "Server") -> None:
        """Begin a connection that a client has opened."""
        self._server = server
        self.loop = asyncio.get_running_loop()
        self.max_message_bytes = server.limits.max_message_bytes
        self.calls: dict[int, Call] = {}
        self.send_window = DEFAULT_WINDOW
        """What may still be sent, on all calls together."""
        self.peer_window = DEFAULT_WINDOW
        """What may be sent on a call that begins now."""
        self.frame_bytes = DEFAULT_FRAME_BYTES
        """The longest payload that may be sent."""
        self.is_paused = False
        """Whether the client does not read what it has been sent."""
        self.moved = asyncio.Event()
        """Set, and replaced by another, when there may be room again for what waits to be sent."""
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._transport: asyncio.Transport
        self._rest = b""
        self._has_begun = False
        self._is_leaving = False
        self._last = 0
        self._credit = OWN_WINDOW
        self._reader = HeadReader()
        self._block = b""
        self._unfinished: tuple[int, int] | None = None
        """Stream and flags of a head that goes on in the next frame."""
        self._before_block = b""
        self._resets, self._reset_at = SPARE_RESETS, time.monotonic()

    # --- what the event loop tells ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the client what it may do."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self._server.limits.max_streams_per_connection,
            Setting.MAX_FRAME_SIZE: OWN_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        self.send(settings_frame(settings) + window_frame(0, OWN_WINDOW - DEFAULT_WINDOW))
        self._timer = self.loop.call_later(PREFACE_SECONDS, self.close)

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent, and keep what is no whole frame yet."""
        if self._transport.is_closing():
            return
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._read(data) :]
        except ConnectionFault as fault:
            logger.debug("a client breaks the protocol: %s", fault)
            self.send(goaway_frame(self._last, fault.code, str(fault)))
            self.close()

    def eof_received(self) -> None:
        """Close: who sends nothing more takes no answers, either."""

    def connection_lost(self, error: Exception | None) -> None:
        """End all calls."""
        self._timer.cancel()
        self._server.connections.discard(self)
        for call in [*self.calls.values()]:
            call.cancel()
        self._move()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Write no further replies for now."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """Write again."""
        self.is_paused = False
        self._move()

    # --- what calls and the server use --------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send frames."""
        self._transport.write(data)

    def send_block(self, number: int, block: bytes, *, is_last: bool = False, follow: bytes = b"") -> None:
        """Send a head or trailers, and frames behind them."""
        block, self._before_block = self._before_block + block, b""
        flags = Flag.END_HEADERS | Flag.END_STREAM if is_last else Flag.END_HEADERS
        if len(block) > self.frame_bytes:
            self.send(frame(Kind.HEADERS, flags & ~Flag.END_HEADERS, number, block[: self.frame_bytes]))
            block = block[self.frame_bytes :]
            while len(block) > self.frame_bytes:
                self.send(frame(Kind.CONTINUATION, 0, number, block[: self.frame_bytes]))
                block = block[self.frame_bytes :]
            self.send(frame(Kind.CONTINUATION, Flag.END_HEADERS, number, block) + follow)
        else:
            self._transport.write(frame_header(Kind.HEADERS, flags, number, len(block)) + block + follow)

    def forget(self, number: int, is_half_closed: bool) -> None:
        """Note that a call is over; what its caller still sends is dropped."""
        if self.calls.pop(number, None) is None:
            return
        self._server.on_call_over()
        if not is_half_closed and not self._transport.is_closing():
            self.send(reset_frame(number, Code.NO_ERROR))
        if self._is_leaving and not self.calls:
            self.close()

    def leave(self) -> None:
        """Take no further calls, and close when those that there are have ended; the client may send others elsewhere."""
        if not self._is_leaving:
            self._is_leaving = True
            self.send(goaway_frame(self._last, Code.NO_ERROR, "the server is shutting down"))
            if not self.calls:
                self.close()

    def end_calls(self, code: grpc.StatusCode, details: str) -> None:
        """End all calls with a status."""
        for call in [*self.calls.values()]:
            call.end(code, details)

    def close(self) -> None:
        """Close the connection when what has been written is sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # --- frames -------------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> int:
        """Take all whole frames; gives where they end. Raises ConnectionFault."""
        at, end = 0, len(data)
        if not self._has_begun:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this is gRPC over HTTP/2 without TLS")
            if end < len(PREFACE):
                return 0
            self._has_begun = True
            self._timer.cancel()
            at = len(PREFACE)
        while end - at >= HEADER_BYTES:
            high, low, kind, flags, number = HEADER.unpack_from(data, at)
            size = high << 8 | low
            if size > OWN_FRAME_BYTES:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"frame: found {size} bytes; allowed: at most {OWN_FRAME_BYTES}")
            begin = at + HEADER_BYTES
            if begin + size > end:
                break
            at = begin + size
            self._take(kind, flags, number & MAX_WINDOW, data, begin, at)
        return at

    def _take(self, kind: int, flags: int, number: int, data: bytes, begin: int, end: int) -> None:
        if self._unfinished is not None and (kind != Kind.CONTINUATION or number != self._unfinished[0]):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "found a frame inside a header block")
        if (not number and kind in OF_STREAM) or (number and kind in OF_CONNECTION):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found frame {kind} on stream {number}")
        if SIZES.get(kind, end - begin) != end - begin:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"frame {kind}: found {end - begin} bytes; allowed: {SIZES[kind]}")
        match kind:
            case Kind.DATA:
                self._on_data(flags, number, data, begin, end)
            case Kind.HEADERS:
                begin, end = _strip(flags, data, begin, end)
                begin += 5 if flags & Flag.PRIORITY else 0
                self._on_block(flags, number, data[begin:end])
            case Kind.CONTINUATION:
                if self._unfinished is None:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "found a continuation of nothing")
                self._on_block(self._unfinished[1] | flags & Flag.END_HEADERS, number, data[begin:end])
            case Kind.RST_STREAM:
                self._on_reset(number)
            case Kind.SETTINGS:
                self._on_settings(flags, data[begin:end])
            case Kind.PING if not flags & Flag.ACK:
                self._reply(frame(Kind.PING, Flag.ACK, 0, data[begin:end]))
            case Kind.WINDOW_UPDATE:
                self._on_window(number, int.from_bytes(data[begin:end], "big") & MAX_WINDOW)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "found a promise from a client")

    def _on_data(self, flags: int, number: int, data: bytes, begin: int, end: int) -> None:
        size = end - begin
        self._credit -= size
        if self._credit < OWN_WINDOW // 2:
            self.send(window_frame(0, OWN_WINDOW - self._credit))
            self._credit = OWN_WINDOW
        begin, end = _strip(flags, data, begin, end)
        call = self.calls.get(number)
        if call is not None:
            call.receive(data, begin, end, size)
            if flags & Flag.END_STREAM and not call.is_over:
                call.half_close()
        elif number > self._last and not self._is_leaving:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found data on stream {number}, which has not begun")

    def _on_block(self, flags: int, number: int, piece: bytes) -> None:
        """Take a piece of a header block, and what it says when it is whole."""
        self._block += piece
        if len(self._block) > MAX_DECODED_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"header block: found more than {MAX_DECODED_BYTES} bytes")
        if not flags & Flag.END_HEADERS:
            self._unfinished = number, flags
            return
        block, self._block, self._unfinished = self._block, b"", None
        if number <= self._last:
            self._reader.decode(block)  # trailers; the table must not miss them
            call = self.calls.get(number)
            if call is not None and not flags & Flag.END_STREAM:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a second head on stream {number}")
            if call is not None:
                call.half_close()
            return
        if not number % 2:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a client's stream with the number {number}")
        head = self._reader.read(block)
        if self._is_leaving:
            return  # as GOAWAY says, the client may send it elsewhere
        self._last = number
        self._open(number, head, bool(flags & Flag.END_STREAM))

    def _open(self, number: int, head: Head, is_half_closed: bool) -> None:
        if len(self.calls) >= self._server.limits.max_streams_per_connection:
            self._reply(reset_frame(number, Code.REFUSED_STREAM))
            return
        refusal = self._server.refuse(head)
        handler = self._server.find(head.path)
        if head.http_status != 200:
            self._refuse(number, ((":status", str(head.http_status)),), is_half_closed)
        elif head.fault or refusal is not None or handler is None:
            if head.fault:
                code, text = head.fault_code, head.fault
            else:
                code, text = refusal or (grpc.StatusCode.UNIMPLEMENTED, f"method: found {head.path!r:.200}; not served here")
            fields = ((":status", "200"), ("content-type", "application/grpc"), *write_trailers(code, text, ()))
            self._refuse(number, fields, is_half_closed)
        else:
            self._server.on_call()
            call = self.calls[number] = Call(self, number, head, handler, self.max_message_bytes)
            if is_half_closed:
                call.half_close()

    def _refuse(self, number: int, fields: tuple[tuple[str, str], ...], is_half_closed: bool) -> None:
        self.send_block(number, write_block(fields), is_last=True)
        self._reply(b"" if is_half_closed else reset_frame(number, Code.NO_ERROR))

    def _on_reset(self, number: int) -> None:
        if number > self._last and not self._is_leaving:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found the end of stream {number}, which has not begun")
        call = self.calls.get(number)
        if call is None:
            return
        now = time.monotonic()
        self._resets = min(SPARE_RESETS, self._resets + (now - self._reset_at) * RESETS_PER_SECOND) - 1
        self._reset_at = now
        call.cancel()
        if self._resets < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "found too many calls given up")

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & Flag.ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "found settings in an acknowledgement")
            return
        if len(payload) % 6:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"settings: found {len(payload)} bytes; allowed: a multiple of 6")
        for at in range(0, len(payload), 6):
            self._on_setting(int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big"))
        self._reply(frame(Kind.SETTINGS, Flag.ACK, 0))
        self._move()

    def _on_setting(self, key: int, value: int) -> None:
        match key:
            case Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"initial window: found {value}; allowed: at most {MAX_WINDOW}")
                for call in self.calls.values():
                    call.send_window += value - self.peer_window
                self.peer_window = value
            case Setting.MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, f"longest frame: found {value}")
                self.frame_bytes = min(value, OWN_FRAME_BYTES)
            case Setting.ENABLE_PUSH if value > 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"push: found {value}; allowed: 0 and 1")
            case Setting.HEADER_TABLE_SIZE if value < DEFAULT_TABLE_BYTES:
                self._before_block = b"\x20"  # no table is used here; once it shrinks, that has to be said (RFC 7541, 4.2)

    def _on_window(self, number: int, more: int) -> None:
        call = self.calls.get(number)
        if not more:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "found a window that grows by nothing")
        if not number:
            self.send_window += more
        elif call is not None:
            call.send_window += more
        elif number > self._last and not self._is_leaving:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a window of stream {number}, which has not begun")
        if max(self.send_window, call.send_window if call is not None else 0) > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"found a window of more than {MAX_WINDOW} bytes")
        self._move()

    def _reply(self, data: bytes) -> None:
        """Send what a client gets for nothing, unless it reads none of it."""
        self.send(data)
        if self.is_paused and self._transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "found much to reply to, and nobody who reads it")

    def _move(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()


def _strip(flags: int, data: bytes, begin: int, end: int) -> tuple[int, int]:
    """Leave out the padding."""
    if not flags & Flag.PADDED:
        return begin, end
    if begin == end or data[begin] >= end - begin:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "found more padding than frame")
    return begin + 1, end - data[begin]
