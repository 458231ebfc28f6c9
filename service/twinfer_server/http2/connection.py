"""A connection: reads what a client sends in turns with other clients, and begins and ends as HTTP/2 has it. Source: RFC 9113."""

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from .calls import Calls
from .frames import Code, ConnectionFault, Flag, Kind, Setting, frame, goaway_frame, settings_frame
from .heads import MAX_HEAD_BYTES
from .outlet import Outlet
from .reading import OWN_FRAME_BYTES, Frame, FrameReader

if TYPE_CHECKING:
    from .server import Server

PREFACE_SECONDS = 20.0
"""How long a client may take to begin."""
TURN_SECONDS = 0.002
"""How long one client's frames may hold up the others'."""


class Connection(asyncio.Protocol):
    """One client's connection. Event loop only."""

    def __init__(self, server: "Server") -> None:
        """Begin a connection that a client has opened."""
        self.calls: Calls
        self.closed = asyncio.get_running_loop().create_future()
        """Done when nothing of the connection is left."""
        self._server = server
        self._transport: asyncio.Transport
        self._out: Outlet
        self._reader = FrameReader()
        self._frames: Iterator[Frame] = iter(())
        """What has come and is not yet taken."""

    # --- what the event loop tells ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the client what it may do."""
        self._transport = cast(asyncio.Transport, transport)
        self._out = Outlet(self._transport)
        self._server.connections.add(self)
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self._server.limits.max_streams_per_connection,
            Setting.MAX_FRAME_SIZE: OWN_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        self._out.send(settings_frame(settings))
        self.calls = Calls(self._server, self._out)
        self._beginning = asyncio.get_running_loop().call_later(PREFACE_SECONDS, self._close_unless_begun)
        if self._server.is_stopping:  # it was accepted just before
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
        self._out.note_loss()
        self._beginning.cancel()
        self._server.connections.discard(self)
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Write no further messages for now."""
        self._out.block(True)

    def resume_writing(self) -> None:
        """Write again."""
        self._out.block(False)

    # --- its end ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Take no further calls, which the client may send elsewhere, and close when those that there are have ended."""
        self._out.send(goaway_frame(self.calls.newest, Code.NO_ERROR, "the server is shutting down"))
        self.calls.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _close_unless_begun(self) -> None:
        if not self._reader.has_begun:
            self._out.close()

    def _part(self) -> None:
        """Close the connection, and have nobody work for it any more."""
        self._out.close()
        self.calls.give_up()

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
            self._out.check()
        except ConnectionFault as fault:
            self._server.note_fault(self._transport.get_extra_info("peername"), fault)
            if self._out.is_blocked:  # nobody would read why
                self.abort()
            self._out.send(goaway_frame(self.calls.newest, fault.code, str(fault)))
            self._part()
        else:
            self._transport.resume_reading()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.DATA:
                self.calls.on_data(frame)
            case Kind.HEADERS:
                self.calls.on_head(frame)
            case Kind.WINDOW_UPDATE:
                self.calls.on_window(frame)
            case Kind.RST_STREAM:
                self.calls.on_reset(frame)
            case Kind.SETTINGS:
                self._on_settings(frame)
            case Kind.PING:
                self._on_ping(frame)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "found a promise, which clients do not make")
            case _:
                self._out.allowance.take()

    def _on_settings(self, settings: Frame) -> None:
        if settings.flags & Flag.ACK:
            if settings.size:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "found settings in an acknowledgement")
            return
        self._out.allowance.take()  # each may change the window of every call
        self.calls.widen(self._out.obey(settings.payload))
        self._out.send(frame(Kind.SETTINGS, Flag.ACK, 0))

    def _on_ping(self, ping: Frame) -> None:
        self._out.allowance.take()
        if not ping.flags & Flag.ACK:
            self._out.send(frame(Kind.PING, Flag.ACK, 0, ping.payload))
