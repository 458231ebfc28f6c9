"""A connection: tells each call what is its own, and keeps the rules of HTTP/2 for all of them. Source: RFC 9113."""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from .call import Call
from .frames import (
    DEFAULT_WINDOW,
    MAX_WINDOW,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
    frame,
    goaway_frame,
    reset_frame,
    settings_frame,
    window_frame,
)
from .heads import MAX_HEAD_BYTES, REPLY_FIELDS, Fields, Head, HeadReader, Status, write_block, write_trailers
from .outlet import Outlet
from .reading import OWN_FRAME_BYTES, Frame, FrameReader

if TYPE_CHECKING:
    from .server import Server

logger = logging.getLogger(__name__)

OWN_WINDOW = 2**30
"""What a client may send on all its calls together; what lies in memory is bounded by each call's window."""
PREFACE_SECONDS = 20.0
"""How long a client may take to begin."""
PARTING_SECONDS = 5.0
"""How long a client may take to read the last bytes that it is sent."""
TURN_SECONDS = 0.002
"""How long one client's frames may hold up the others'."""
RAPID_SECONDS = 0.05
"""A call that its client gives up so soon has served nobody; later ones may have met their deadline, or another's answer."""
BROKEN_CALL = 2
"""What a call costs that its client gives up or breaks: with what its end gives back, one."""


class Connection(asyncio.Protocol):
    """One client's connection. Event loop only."""

    def __init__(self, server: "Server") -> None:
        """Begin a connection that a client has opened."""
        self.server = server
        self.out: Outlet
        self.closed = asyncio.get_running_loop().create_future()
        """Done when nothing of the connection is left."""
        self._transport: asyncio.Transport
        self._calls: dict[int, Call] = {}
        self._last = 0
        """The number of the newest call; each is larger than those before."""
        self._credit = OWN_WINDOW
        self._reader = FrameReader()
        self._frames: Iterator[Frame] = iter(())
        """What has come and is not yet taken."""
        self._heads = HeadReader()
        self._is_leaving = False

    # --- what the event loop tells ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the client what it may do."""
        self._transport = cast(asyncio.Transport, transport)
        self.out = Outlet(self._transport)
        self.server.connections.add(self)
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self.server.limits.max_streams_per_connection,
            Setting.MAX_FRAME_SIZE: OWN_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        self.out.send(settings_frame(settings) + window_frame(0, OWN_WINDOW - DEFAULT_WINDOW))
        self._ending = asyncio.get_running_loop().call_later(PREFACE_SECONDS, self._close_unless_begun)
        if self.server.is_stopping:  # it was accepted just before
            self.leave()

    def data_received(self, data: bytes) -> None:
        """Take the frames that the client has sent."""
        self._frames = self._reader.read(data)
        self._take_turn()

    def eof_received(self) -> None:
        """Let the calls go of a client that has gone, or sends no more, which comes to the same."""
        self._part()

    def connection_lost(self, error: Exception | None) -> None:
        """End all calls."""
        self._part()
        self._ending.cancel()
        self.server.connections.discard(self)
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Write no further messages for now."""
        self.out.block(True)

    def resume_writing(self) -> None:
        """Write again."""
        self.out.block(False)

    # --- what calls and the server use --------------------------------------------------------------------------------

    def forget(self, number: int, *, is_half_closed: bool) -> None:
        """Note that a call is over; what its caller still sends is dropped."""
        del self._calls[number]
        self.server.count(-1)
        self.out.allowance.give()
        if not is_half_closed:
            self.out.send(reset_frame(number, Code.NO_ERROR))
        if self._is_leaving and not self._calls:
            self.close()

    def leave(self) -> None:
        """Take no further calls, which the client may send elsewhere, and close when those that there are have ended."""
        self._is_leaving = True
        self.out.send(goaway_frame(self._last, Code.NO_ERROR, "the server is shutting down"))
        if not self._calls:
            self.close()

    def end_calls(self, status: Status) -> None:
        """End all calls with a status."""
        for call in [*self._calls.values()]:
            call.end(status)

    def look(self, now: float) -> None:
        """End the calls whose time is up."""
        for call in [*self._calls.values()]:
            call.look(now)

    def close(self) -> None:
        """Close the connection when what has been written is sent, or is not taken for too long."""
        if not self._transport.is_closing():
            self._transport.close()
            self._ending.cancel()
            self._ending = asyncio.get_running_loop().call_later(PARTING_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _close_unless_begun(self) -> None:
        if not self._reader.has_begun:
            self.close()

    def _part(self) -> None:
        """Close the connection, and have nobody work for it any more."""
        self.close()
        for call in [*self._calls.values()]:
            call.give_up()

    # --- frames -------------------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        """Take what frames there are; if they are many, have other clients served before the rest."""
        until = time.monotonic() + TURN_SECONDS
        try:
            for each in self._frames:
                if self._transport.is_closing():
                    return
                self._take(each)
                if time.monotonic() > until:
                    self._transport.pause_reading()
                    asyncio.get_running_loop().call_soon(self._take_turn)
                    return
            self.out.check()
        except ConnectionFault as fault:
            logger.debug("a client breaks the rules: %s", fault)
            if self.out.is_blocked:  # nobody would read why
                self.abort()
            self.out.send(goaway_frame(self._last, fault.code, str(fault)))
            self._part()
        else:
            self._transport.resume_reading()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.DATA:
                self._on_data(frame)
            case Kind.HEADERS:
                self._on_head(frame)
            case Kind.WINDOW_UPDATE:
                self._on_window(frame.stream, int.from_bytes(frame.payload, "big") & MAX_WINDOW)
            case Kind.RST_STREAM:
                self._on_reset(frame.stream)
            case Kind.SETTINGS:
                self._on_settings(frame)
            case Kind.PING:
                self._on_ping(frame)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "found a promise, which clients do not make")
            case _:
                self.out.allowance.take()

    def _find(self, stream: int) -> Call | None:
        """Give a call; None if it is over. Raises ConnectionFault if it has not begun."""
        call = self._calls.get(stream)
        if call is None and ((stream > self._last and not self._is_leaving) or not stream % 2):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a frame on stream {stream}, which has not begun")
        return call

    def _on_data(self, frame: Frame) -> None:
        self._credit -= frame.size
        if self._credit < OWN_WINDOW // 2:
            self.out.send(window_frame(0, OWN_WINDOW - self._credit))
            self._credit = OWN_WINDOW
        call, is_last = self._find(frame.stream), frame.flags & Flag.END_STREAM
        if frame.begin == frame.end and not is_last:
            self.out.allowance.take()
        if call is not None:
            call.receive(frame)
            if is_last:
                call.half_close()
            self._look_after(frame.stream)

    def _look_after(self, stream: int) -> None:
        """Count it if a call is over by what its client has just sent (CVE-2025-8671)."""
        if stream not in self._calls:
            self.out.allowance.take(BROKEN_CALL)

    def _on_head(self, frame: Frame) -> None:
        stream, is_last = frame.stream, bool(frame.flags & Flag.END_STREAM)
        if not stream % 2:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found stream {stream}; allowed: odd numbers")
        if stream <= self._last:
            if not is_last:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a head on stream {stream}, which has had one, or is passed over")
            self._heads.skip(frame.payload)
            call = self._find(stream)
            if call is not None:
                call.half_close()
                self._look_after(stream)
            return
        head = self._heads.read(frame.payload)
        if self._is_leaving:
            return
        self._last = stream
        if len(self._calls) < self.server.limits.max_streams_per_connection:
            self._open(stream, head, is_last)
        else:
            self.out.send(reset_frame(stream, Code.REFUSED_STREAM))

    def _open(self, stream: int, head: Head, is_half_closed: bool) -> None:
        if head.http_status != 200:
            self._refuse(stream, ((":status", str(head.http_status)),), is_half_closed)
            return
        found = head.refusal or self.server.find(head.path)
        if isinstance(found, Status):
            self._refuse(stream, REPLY_FIELDS + write_trailers(found), is_half_closed)
            return
        self.server.count(+1)
        call = self._calls[stream] = Call(self, stream, head, found)
        if is_half_closed:
            call.half_close()

    def _refuse(self, stream: int, fields: Fields, is_half_closed: bool) -> None:
        self.out.send_block(stream, write_block(fields), is_last=True)
        if not is_half_closed:
            self.out.send(reset_frame(stream, Code.NO_ERROR))

    def _on_reset(self, stream: int) -> None:
        call = self._find(stream)
        if call is None:
            return
        call.give_up()
        if call.seconds < RAPID_SECONDS:
            self.out.allowance.take(BROKEN_CALL)

    def _on_window(self, stream: int, more_bytes: int) -> None:
        self.out.allowance.take()
        if not more_bytes:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "found a window that grows by nothing")
        if not stream:
            self.out.widen(more_bytes)
        else:
            call = self._find(stream)
            if call is not None:
                call.widen(more_bytes)

    def _on_settings(self, settings: Frame) -> None:
        if settings.flags & Flag.ACK:
            if settings.size:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "found settings in an acknowledgement")
            return
        self.out.allowance.take()  # each may change the window of every call
        more_bytes = self.out.obey(settings.payload)
        for call in self._calls.values():
            call.widen(more_bytes)
        self.out.send(frame(Kind.SETTINGS, Flag.ACK, 0))

    def _on_ping(self, ping: Frame) -> None:
        self.out.allowance.take()
        if not ping.flags & Flag.ACK:
            self.out.send(frame(Kind.PING, Flag.ACK, 0, ping.payload))
