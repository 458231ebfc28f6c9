"""The reader of frames: cuts what a client sends into frames, and refuses those that can be no frames whatever they mean."""

from collections.abc import Iterator
from typing import NamedTuple

from .frames import HEADER, HEADER_BYTES, MAX_WINDOW, PREFACE, Code, ConnectionFault, Flag, Kind

OWN_FRAME_BYTES = 2**16
"""The longest payload that a client may send in one frame."""
MAX_BLOCK_BYTES = 2**15
"""Of a head as it comes; nothing more can be made of a connection with a longer one, and hpack's time grows as its square."""

_BEGINNING_BYTES = len(PREFACE) + HEADER_BYTES
"""The preface, and the header of the settings that belong to it."""
_SIZES = {Kind.PRIORITY: 5, Kind.RST_STREAM: 4, Kind.PING: 8, Kind.WINDOW_UPDATE: 4}
_OF_CONNECTION = {Kind.SETTINGS, Kind.PING, Kind.GOAWAY}
_OF_STREAM = {Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.PUSH_PROMISE, Kind.CONTINUATION}


class Frame(NamedTuple):
    """A frame: its payload is data[begin:end], without padding; `size` is the length of the payload with it.

    A head is one frame of kind HEADERS, behind one of kind CONTINUATION for each piece in which it has come, if it has in several.
    """

    kind: int
    flags: int
    stream: int
    data: bytes
    begin: int
    end: int
    size: int

    @property
    def payload(self) -> bytes:
        """A copy of the payload."""
        return self.data[self.begin : self.end]


class FrameReader:
    """Reads one connection's frames."""

    def __init__(self) -> None:
        """Begin where the client's preface should come."""
        self.has_begun = False
        """Whether the preface has come."""
        self._rest = b""
        self._head: Frame | None = None
        """The first frame of a head that goes on in the next."""
        self._block = bytearray()

    def read(self, data: bytes) -> Iterator[Frame]:
        """Give the frames that are whole with this piece of what was sent; raises ConnectionFault."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        if not self.has_begun:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "here is gRPC over HTTP/2 without TLS, and that begins otherwise")
            self.has_begun = end >= _BEGINNING_BYTES
            if self.has_begun and (data[len(PREFACE) + 3] != Kind.SETTINGS or data[len(PREFACE) + 4] & Flag.ACK):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "found another frame before the settings")
            at = len(PREFACE) if self.has_begun else end + 1
        while end - at >= HEADER_BYTES:
            high, low, kind, flags, stream = HEADER.unpack_from(data, at)
            size = high << 8 | low
            if size > OWN_FRAME_BYTES:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"frame: found {size} bytes; allowed: at most {OWN_FRAME_BYTES}")
            begin = at + HEADER_BYTES
            if begin + size > end:
                break
            at = begin + size
            frame = Frame(kind, flags, stream & MAX_WINDOW, data, begin, at, size)
            if kind != Kind.DATA or flags & Flag.PADDED or not frame.stream or self._head is not None:
                frame = self._look_at(frame)
            yield frame
        self._rest = data[at:] if self.has_begun else data

    def _look_at(self, frame: Frame) -> Frame:
        """Check a frame, leave out its padding, and put heads together."""
        kind, flags, stream = frame.kind, frame.flags, frame.stream
        if self._head is not None and (kind != Kind.CONTINUATION or stream != self._head.stream):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found frame {kind} on stream {stream} inside a head")
        if (not stream and kind in _OF_STREAM) or (stream and kind in _OF_CONNECTION):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"found frame {kind} on stream {stream}")
        if _SIZES.get(kind, frame.size) != frame.size:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"frame {kind}: found {frame.size} bytes; allowed: {_SIZES[kind]}")
        match kind:
            case Kind.DATA:
                return _strip(frame)
            case Kind.HEADERS:
                frame = _strip(frame)
                if flags & Flag.PRIORITY:
                    if frame.end - frame.begin < _SIZES[Kind.PRIORITY]:
                        code = Code.PROTOCOL_ERROR if flags & Flag.PADDED else Code.FRAME_SIZE_ERROR
                        raise ConnectionFault(code, f"head: found {frame.size} bytes, too few for the priority that it announces")
                    frame = frame._replace(begin=frame.begin + _SIZES[Kind.PRIORITY])
                _check_block(frame.end - frame.begin)
                if flags & Flag.END_HEADERS:
                    return frame
                self._head, self._block = frame, bytearray(frame.payload)
                return frame._replace(kind=Kind.CONTINUATION)
            case Kind.CONTINUATION:
                return self._go_on(frame)
            case Kind.GOAWAY if frame.size < 8:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"frame {kind}: found {frame.size} bytes; allowed: at least 8")
        return frame

    def _go_on(self, frame: Frame) -> Frame:
        head = self._head
        if head is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "found the continuation of nothing")
        _check_block(len(self._block) + frame.end - frame.begin)
        self._block += frame.payload
        if not frame.flags & Flag.END_HEADERS:
            return frame
        block, self._block, self._head = bytes(self._block), bytearray(), None
        return head._replace(data=block, begin=0, end=len(block), size=len(block))


def _check_block(size: int) -> None:
    if size > MAX_BLOCK_BYTES:
        raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"head: found {size} bytes or more; allowed: at most {MAX_BLOCK_BYTES}")


def _strip(frame: Frame) -> Frame:
    """Leave out the padding."""
    if not frame.flags & Flag.PADDED:
        return frame
    if not frame.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "found a padded frame that does not say how much of it is padding")
    padding = frame.data[frame.begin]
    if padding >= frame.size:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "found more padding than frame")
    return frame._replace(begin=frame.begin + 1, end=frame.end - padding)
