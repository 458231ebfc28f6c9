"""Clients that speak HTTP/2 as a test wants it: one of bare frames, which keeps no rules, and one of `h2`, which keeps all."""

import itertools
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
from hyperframe.frame import Frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x01
END_HEADERS, PADDED, HAS_PRIORITY = 0x04, 0x08, 0x20

Fields = Iterable[tuple[str, str]]


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write any frame, however wrong."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(data: bytes, flag: int = 0) -> bytes:
    """Write a message of gRPC."""
    return struct.pack(">BI", flag, len(data)) + data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at places, which may be anywhere and the same."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def request_fields(path: str, more: Fields = ()) -> list[tuple[str, str]]:
    """Write the fields that a call begins with."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "here")]
    return [*fields, ("te", "trailers"), ("content-type", "application/grpc"), *more]


def connect(address: str) -> socket.socket:
    """Open a socket to an address as the server gives it."""
    if address.startswith("unix:"):
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        opened = socket.create_connection((host.strip("[]"), int(port)))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


@dataclass(slots=True)
class Response:
    """What has come on one stream."""

    heads: list[dict[str, str]] = field(default_factory=list)
    """The head and the trailers, or only these."""
    body: bytearray = field(default_factory=bytearray)
    has_ended: bool = False
    reset: int | None = None
    """The error code with which the server has ended it, if it has not taken all."""

    @property
    def messages(self) -> list[bytes]:
        """The messages that are whole."""
        found, at = [], 0
        while at + 5 <= len(self.body) and (end := at + 5 + int.from_bytes(self.body[at + 1 : at + 5])) <= len(self.body):
            found.append(bytes(self.body[at + 5 : end]))
            at = end
        return found

    @property
    def status(self) -> tuple[int, str]:
        """The number of the status, and its text as it is written."""
        return int(self.heads[-1]["grpc-status"]), self.heads[-1].get("grpc-message", "")


class _Peer:
    def __init__(self, address: str) -> None:
        self.socket = connect(address)
        self.answers: dict[int, Response] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def pump(self) -> bool:
        """Take something that the server sends; False when it has closed."""
        raise NotImplementedError

    def wait(self, has_come: Callable[[], Any]) -> None:
        """Take what the server sends until it has come; raises EOFError."""
        while not has_come():
            if not self.pump():
                raise EOFError

    def answer(self, stream: int) -> Response:
        """Wait for all that comes on a stream."""
        answer = self.answers.setdefault(stream, Response())
        self.wait(lambda: answer.has_ended or answer.reset is not None)
        return answer


class BarePeer(_Peer):
    """A client of bare frames. Flow control is up to the test."""

    def __init__(self, address: str, settings: Mapping[int, int] | None = None, *, begins: bool = True) -> None:
        """Connect; unless it `begins`, nothing is sent."""
        super().__init__(address)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.frames: list[Any] = []
        """All that have come."""
        self._file = self.socket.makefile("rb")
        self._block = b""
        self._ending: Response | None = None
        if begins:
            pairs = b"".join(struct.pack(">HI", *pair) for pair in (settings or {}).items())
            self.send(PREFACE, raw(SETTINGS, 0, 0, pairs))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        super().__exit__(kind, error, trace)

    def send(self, *pieces: bytes) -> None:
        """Send all in one go."""
        self.socket.sendall(b"".join(pieces))

    def head(self, stream: int, path: str, more: Fields = (), flags: int = END_HEADERS) -> bytes:
        """Write the head of a call."""
        return raw(HEADERS, flags, stream, self.block(request_fields(path, more)))

    def block(self, fields: Fields) -> bytes:
        """Write fields in HPACK; blocks have to be sent in the order in which they are written."""
        return bytes(self.encoder.encode(list(fields)))

    def call(self, stream: int, path: str, data: bytes, more: Fields = ()) -> bytes:
        """Write a whole call with one message."""
        return self.head(stream, path, more) + raw(DATA, END_STREAM, stream, message(data))

    def pump(self) -> bool:
        """Take a frame; False when the server has closed."""
        header = self._file.read(9)
        if len(header) < 9:
            return False
        frame: Any
        frame, size = Frame.parse_frame_header(memoryview(header))
        frame.parse_body(memoryview(self._file.read(size)))
        self.frames.append(frame)
        answer = self.answers.setdefault(frame.stream_id, Response())
        if frame.type in (HEADERS, CONTINUATION):
            self._block += frame.data
            if "END_HEADERS" in frame.flags:
                fields: Any = self.decoder.decode(self._block)
                answer.heads.append(dict(fields))
                self._block = b""
        elif frame.type == DATA:
            answer.body += frame.data
        elif frame.type == RST_STREAM:
            answer.reset = frame.error_code
        if "END_STREAM" in frame.flags:
            self._ending = answer
        if answer is self._ending and not self._block:  # its trailers may go on
            answer.has_ended = True
        return True

    def rest(self) -> list[Any]:
        """Take all until the server closes; gives every frame that has come."""
        while self.pump():
            pass
        return self.frames

    def of_kind(self, kind: int) -> list[Any]:
        """Give the frames of a kind that have come."""
        return [frame for frame in self.frames if frame.type == kind]


class H2Peer(_Peer):
    """A client of `h2`, which raises where the server breaks a rule; it takes as much as it is sent, or what a test lets it."""

    def __init__(self, address: str, settings: Mapping[int, int] | None = None, *, takes_all: bool = True) -> None:
        """Connect and begin."""
        super().__init__(address)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        first: Any = {2: 0} | dict(settings or {})
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=first)
        self._takes_all = takes_all
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what `h2` has written."""
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path: str, more: Fields = ()) -> int:
        """Begin a call; gives its stream."""
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, request_fields(path, more))
        self.answers[stream] = Response()
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, is_last: bool = False) -> None:
        """Send data in as many frames as it takes, each when the server has room for it."""
        rest = memoryview(data)
        while rest:
            self.wait(lambda: self.h2.local_flow_control_window(stream))
            size = min(len(rest), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            self.h2.send_data(stream, rest[:size].tobytes())
            self.flush()
            rest = rest[size:]
        if is_last:
            self.h2.end_stream(stream)
            self.flush()

    def call(self, path: str, data: bytes, more: Fields = ()) -> int:
        """Begin a call and send its only message; gives its stream."""
        stream = self.begin(path, more)
        self.send(stream, message(data), is_last=True)
        return stream

    def take(self, size: int, stream: int | None = None) -> None:
        """Let the server send more, on a stream or in all."""
        self.h2.increment_flow_control_window(size, stream)
        self.flush()

    def pump(self) -> bool:
        """Take what has come; False when the server has closed."""
        data = self.socket.recv(2**16)
        for each in self.h2.receive_data(data):
            event: Any = each
            answer = self.answers.get(getattr(event, "stream_id", None) or 0, Response())
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    fields: Any = event.headers
                    answer.heads.append(dict(fields))
                case h2.events.DataReceived():
                    answer.body += event.data
                    if self._takes_all and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    answer.has_ended = True
                case h2.events.StreamReset():
                    answer.reset = event.error_code
        self.flush()
        return bool(data)
