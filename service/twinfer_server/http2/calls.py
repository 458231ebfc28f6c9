"""The calls of one connection: each is told what its client sends it, and what clients may not send is refused."""

import asyncio
from typing import TYPE_CHECKING

from .allowance import ANSWERED_CALL, BROKEN_CALL
from .call import Call
from .frames import DEFAULT_WINDOW, MAX_WINDOW, Code, ConnectionFault, Flag, reset_frame, window_frame
from .heads import REPLY_FIELDS, Fields, Head, HeadReader, Status, write_block, write_trailers
from .outlet import Outlet
from .reading import Frame

if TYPE_CHECKING:
    from .server import Server

OWN_WINDOW = 2**30
"""What a client may send on all its calls together; what lies in memory is bounded by each call's window."""
LINGER_SECONDS = 1.0
"""How long a client may go on sending on a call that is over before it is told not to. Most often its end is under way; the reset
would then be one of a stream that a proxy no longer knows, and nginx closes the connection for it."""
RAPID_SECONDS = 0.05
"""A call that its client gives up so soon has served nobody; later ones may have met another's answer."""


class Calls:
    """The calls that one client has made and that are not over. Event loop only; what takes frames raises ConnectionFault."""

    def __init__(self, server: "Server", out: Outlet) -> None:
        """Begin without calls."""
        self.server = server
        self.out = out
        self.newest = 0
        """The number of the newest call; each is larger than those before."""
        self._calls: dict[int, Call] = {}
        self._unfinished: dict[int, asyncio.TimerHandle] = {}
        """The calls that are over and whose client may still send, each with the time at which it is told not to."""
        self._credit = OWN_WINDOW
        self._heads = HeadReader()
        self._is_closed = False
        out.send(window_frame(0, OWN_WINDOW - DEFAULT_WINDOW))

    # --- what the connection tells ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no further calls, and close the connection when those that there are have ended."""
        self._is_closed = True
        if not self._calls:
            self.out.close()

    def end(self, status: Status) -> None:
        """End all calls with a status."""
        for call in [*self._calls.values()]:
            call.end(status)

    def give_up(self) -> None:
        """End all calls without a word, for their caller has gone."""
        for call in [*self._calls.values()]:
            call.give_up()
        for number in [*self._unfinished]:
            self._finish(number)

    def look(self, now: float) -> None:
        """End the calls whose time is up."""
        for call in [*self._calls.values()]:
            call.look(now)

    def widen(self, more_bytes: int) -> None:
        """Take notice that the client takes more, or less, on each of its calls."""
        for call in self._calls.values():
            call.widen(more_bytes)

    # --- what calls tell ----------------------------------------------------------------------------------------------

    def forget(self, number: int, *, is_half_closed: bool) -> None:
        """Note that a call is over; what its caller still sends is dropped."""
        call = self._calls.pop(number)
        self.server.count(call.path, -1)
        self.out.allowance.give(ANSWERED_CALL)
        if not is_half_closed:
            self._linger(number)
        if self._is_closed and not self._calls:
            self.out.close()

    # --- frames -------------------------------------------------------------------------------------------------------

    def on_data(self, frame: Frame) -> None:
        """Hand on a piece of a message."""
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
        elif is_last:
            self._finish(frame.stream)

    def on_head(self, frame: Frame) -> None:
        """Begin a call, or half-close the one whose trailers these are."""
        stream, is_last = frame.stream, bool(frame.flags & Flag.END_STREAM)
        if not stream % 2:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found stream {stream}; allowed: odd numbers")
        if stream <= self.newest:
            if not is_last:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a head on stream {stream}, which has had one, or is passed over")
            self._heads.skip(frame.payload)
            call = self._find(stream)
            if call is not None:
                call.half_close()
                self._look_after(stream)
            else:
                self._finish(stream)
            return
        head = self._heads.read(frame.payload)
        if self._is_closed:
            return
        self.newest = stream
        if len(self._calls) < self.server.limits.max_streams_per_connection:
            self._open(stream, head, is_last)
        else:
            self.out.send(reset_frame(stream, Code.REFUSED_STREAM))

    def on_reset(self, frame: Frame) -> None:
        """Give up a call, as its client has."""
        call = self._find(frame.stream)
        if call is None:
            self._finish(frame.stream)
            return
        call.give_up()
        if call.seconds < RAPID_SECONDS and not call.is_due:
            self.out.allowance.take(BROKEN_CALL)

    def on_window(self, frame: Frame) -> None:
        """Take notice that the client takes more, on one call or on all together."""
        more_bytes = int.from_bytes(frame.payload, "big") & MAX_WINDOW
        self.out.allowance.take()
        if not more_bytes:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "found a window that grows by nothing")
        if not frame.stream:
            self.out.widen(more_bytes)
        else:
            call = self._find(frame.stream)
            if call is not None:
                call.widen(more_bytes)

    def _find(self, stream: int) -> Call | None:
        """Give a call; None if it is over. Raises ConnectionFault if it has not begun."""
        call = self._calls.get(stream)
        if call is None and ((stream > self.newest and not self._is_closed) or not stream % 2):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found a frame on stream {stream}, which has not begun")
        return call

    def _look_after(self, stream: int) -> None:
        """Count it if a call is over by what its client has just sent (CVE-2025-8671)."""
        if stream not in self._calls:
            self.out.allowance.take(BROKEN_CALL)

    def _open(self, stream: int, head: Head, is_half_closed: bool) -> None:
        if head.http_refusal:
            self._refuse(stream, head.http_refusal, is_half_closed)
            return
        found = head.refusal or self.server.find(head.path)
        if isinstance(found, Status):
            self._refuse(stream, REPLY_FIELDS + write_trailers(found), is_half_closed)
            return
        self.server.count(head.path, +1)
        call = self._calls[stream] = Call(self, stream, head, found)
        if is_half_closed:
            call.half_close()

    def _refuse(self, stream: int, fields: Fields, is_half_closed: bool) -> None:
        self.out.send_block(stream, write_block(fields), is_last=True)
        self.out.allowance.give(ANSWERED_CALL)
        if not is_half_closed:
            self._linger(stream)

    def _linger(self, stream: int) -> None:
        """Have the client stop sending on a call that is over, unless it does so by itself in a moment."""
        self._unfinished[stream] = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._reset, stream)

    def _finish(self, stream: int) -> None:
        """Note that the client sends nothing more on a call that is over."""
        timer = self._unfinished.pop(stream, None)
        if timer is not None:
            timer.cancel()

    def _reset(self, stream: int) -> None:
        del self._unfinished[stream]
        self.out.send(reset_frame(stream, Code.NO_ERROR))
