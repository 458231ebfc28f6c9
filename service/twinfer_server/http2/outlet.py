"""The way out: what is sent on a connection, and how much of it the client takes. Source: RFC 9113, section 5.2."""

import asyncio

from .allowance import Allowance
from .frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
    frame,
)

MAX_UNREAD_BYTES = 2**20
"""Of what is sent whether or not there is room, all but messages; a client that has more and reads none of it is cut off."""
PARTING_SECONDS = 5.0
"""How long a client may take to read the last bytes that it is sent."""
MAX_SETTINGS = 32
"""In one frame, as in nghttp2; there are six."""
FRAMES_IN_RETURN = 4
"""How many a client may send for one of a message: what else it takes, on the call and in all, and a ping to time its way."""
LONGEST_FRAME_BYTES = 2**16
"""However long frames the client takes: other calls' are to come in between."""


class Outlet:
    """Writes to a connection. Event loop only."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Begin with what every client takes."""
        self._transport = transport
        self.allowance = Allowance()
        self.window = DEFAULT_WINDOW
        """What may still be sent of messages, on all calls together."""
        self.call_window = DEFAULT_WINDOW
        """The same, on a call that begins now."""
        self.frame_bytes = DEFAULT_FRAME_BYTES
        """The longest payload of a frame."""
        self.is_blocked = False
        """Whether the client does not read what it has been sent."""
        self._waiting: dict[asyncio.Future[None], None] = {}
        """Those who wait for room, in the order in which they came."""
        self._before_block = b""
        self._parting: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Close the connection when what has been written is sent, or is not taken for too long."""
        if not self._transport.is_closing():
            self._transport.close()
            self._parting = asyncio.get_running_loop().call_later(PARTING_SECONDS, self._transport.abort)

    def note_loss(self) -> None:
        """Note that the connection is closed."""
        if self._parting is not None:
            self._parting.cancel()

    def send(self, data: bytes) -> None:
        """Send frames, unless the connection has been lost and not told so yet."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def send_block(self, stream: int, block: bytes, *, is_last: bool = False, behind: bytes = b"") -> None:
        """Send a head or, if it `is_last`, trailers, and frames `behind` it."""
        if self._before_block:
            block, self._before_block = self._before_block + block, b""
        kind, flags = Kind.HEADERS, Flag.END_STREAM if is_last else 0
        while len(block) > self.frame_bytes:
            self.send(frame(kind, flags, stream, block[: self.frame_bytes]))
            kind, flags, block = Kind.CONTINUATION, 0, block[self.frame_bytes :]
        self.send(frame(kind, flags | Flag.END_HEADERS, stream, block) + behind)

    def check(self) -> None:
        """Check that the client reads what it is sent for little: acknowledgements, refusals, failures. Raises ConnectionFault."""
        if self.is_blocked and self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "found much to reply to, and nobody who reads it")

    def spend(self, size: int) -> None:
        """Note that `size` bytes of a message go out, which the client may acknowledge and time."""
        self.window -= size
        self.allowance.give(FRAMES_IN_RETURN)

    def takes(self, size: int, call_window: int) -> bool:
        """Whether a message of `size` bytes can go out now in one frame, on a call with that window."""
        return size <= call_window and size <= self.window and size <= self.frame_bytes and not self.is_blocked

    def room(self, call_window: int) -> int:
        """Give how many bytes of a message can go out now in one frame, on a call with that window."""
        return 0 if self.is_blocked else max(0, min(call_window, self.window, self.frame_bytes))

    def enqueue(self, turn: "asyncio.Future[None]") -> None:
        """Set the result of `turn` when it is its turn and there is room on the connection."""
        self._waiting[turn] = None

    def dequeue(self, turn: "asyncio.Future[None]") -> None:
        """Let somebody go who waits no longer."""
        self._waiting.pop(turn, None)

    def move(self) -> None:
        """Give the turn to the first who waits, if there is room; who has taken enough of it gives it to the next.

        Were all woken for each byte of room, it would cost the server much and the client little.
        """
        while self._waiting and self.room(MAX_WINDOW):
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return

    def block(self, is_blocked: bool) -> None:
        """Note whether the client reads what it is sent."""
        self.is_blocked = is_blocked
        self.move()

    def widen(self, more_bytes: int) -> None:
        """Take notice that more may be sent on all calls together; raises ConnectionFault."""
        self.window += more_bytes
        self.move()
        if self.window > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"window: found {self.window} bytes; allowed: at most {MAX_WINDOW}")

    def obey(self, payload: bytes) -> int:
        """Take notice of the client's settings; gives by how much its calls' windows grow. Raises ConnectionFault."""
        if len(payload) % 6:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"settings: found {len(payload)} bytes; allowed: a multiple of 6")
        if len(payload) > 6 * MAX_SETTINGS:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"settings: found {len(payload) // 6}; allowed: {MAX_SETTINGS}")
        before = self.call_window
        for at in range(0, len(payload), 6):
            self._obey(int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big"))
        return self.call_window - before

    def _obey(self, key: int, value: int) -> None:
        match key:
            case Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"initial window: found {value}; allowed: at most {MAX_WINDOW}")
                self.call_window = value
            case Setting.MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                    text = f"longest frame: found {value}; allowed: {DEFAULT_FRAME_BYTES} to {MAX_FRAME_BYTES}"
                    raise ConnectionFault(Code.PROTOCOL_ERROR, text)
                self.frame_bytes = min(value, LONGEST_FRAME_BYTES)
            case Setting.ENABLE_PUSH:
                if value > 1:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, f"push: found {value}; allowed: 0 and 1")
            case Setting.HEADER_TABLE_SIZE:
                if value < DEFAULT_TABLE_BYTES:
                    self._before_block = b"\x20"  # no table is used here; once it shrinks, that has to be said (RFC 7541, 4.2)
