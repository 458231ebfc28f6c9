"""The writer of a call: sends its replies, each when the caller has room for it, and its status behind them."""

import asyncio
import time

from .frames import MAX_WINDOW, Code, ConnectionFault, Flag, Kind, frame, frame_header
from .heads import OK_BLOCK, REPLY_BLOCK, REPLY_FIELDS, Status, write_block, write_trailers
from .messages import PREFIX
from .outlet import Outlet

TURN_BYTES, WRITE_BYTES = 2**16, 2**10
"""How much a call may write in one turn of the loop, where each write counts as so many bytes more."""


class CallEnded(Exception):
    """The call is over, and nothing more can be read or written."""


class Writer:
    """Writes for one call. Event loop only."""

    __slots__ = ("_has_begun", "_number", "_out", "_pace", "_turn", "_window", "blocked_at", "is_over")

    def __init__(self, out: Outlet, number: int) -> None:
        """Begin with nothing sent on the stream `number`."""
        self._out = out
        self._number = number
        self._window = out.call_window
        """What the caller still takes."""
        self._has_begun = False
        self._pace = 0
        """What has been written since others had their turn."""
        self._turn: asyncio.Future[None] | None = None
        """Done when there may be room."""
        self.blocked_at = 0.0
        """Since when the caller has taken nothing of what is to be sent; 0 if it does."""
        self.is_over = False

    async def write(self, message: bytes) -> None:
        """Send a reply, in as many pieces as there must be, one reply at a time; raises CallEnded."""
        if self.is_over:
            raise CallEnded
        if not self._has_begun:
            self._has_begun = True
            self._out.send_block(self._number, REPLY_BLOCK)
        prefix, rest = PREFIX.pack(False, len(message)), memoryview(message)
        try:
            while prefix or rest:
                size = min(len(prefix) + len(rest), self._out.room(self._window))
                if size:
                    self._out.spend(size)
                    self._window -= size
                    begin, prefix = prefix[:size], prefix[size:]
                    end = size - len(begin)
                    self._out.send(frame_header(Kind.DATA, 0, self._number, size) + begin + rest[:end])
                    rest = rest[end:]
                    await self._keep_pace(size)
                else:
                    await self._wait_for_room()
                if self.is_over:
                    raise CallEnded
        finally:
            self._out.move()

    def write_only(self, message: bytes) -> bool:
        """Send the only reply and that all went well, in one piece; False where there is no room for that now."""
        size = PREFIX.size + len(message)
        if self._has_begun or not self._out.takes(size, self._window):
            return False
        self._out.spend(size)
        data = frame_header(Kind.DATA, 0, self._number, size) + PREFIX.pack(False, len(message)) + message
        trailers = frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, self._number, OK_BLOCK)
        self._out.send_block(self._number, REPLY_BLOCK, behind=data + trailers)
        return True

    def end(self, status: Status) -> None:
        """Send a status, with which the call ends."""
        fields = write_trailers(status)
        self._out.send_block(self._number, write_block(fields if self._has_begun else REPLY_FIELDS + fields), is_last=True)

    def close(self) -> None:
        """Send nothing more; who waits for room waits no longer."""
        self.is_over = True
        self._wake()

    def widen(self, more_bytes: int) -> None:
        """Take notice that the caller takes more; raises ConnectionFault."""
        had_none = self._window <= 0
        self._window += more_bytes
        if had_none and self._window > 0:
            self._wake()
        if self._window > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"window: found {self._window} bytes; allowed: at most {MAX_WINDOW}")

    async def _keep_pace(self, size: int) -> None:
        """Let others have their turn now and then: a client may read as fast as a handler writes, and then nothing else would."""
        self._pace += size + WRITE_BYTES
        if self._pace > TURN_BYTES:
            self._pace = 0
            await asyncio.sleep(0)

    async def _wait_for_room(self) -> None:
        self._turn = asyncio.get_running_loop().create_future()
        self.blocked_at = time.monotonic()
        if self._window > 0:
            self._out.enqueue(self._turn)
        else:
            self._out.move()
        try:
            await self._turn
        finally:
            self.blocked_at = 0.0
            self._out.dequeue(self._turn)

    def _wake(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
