"""Floods of HTTP/2 frames that no client library would send: they take no more memory than calls do, and others are answered.

grpcio's own answers are the guards here. To CVE-2023-44487 its core has since 1.60: it lets no call in while as many as
`max_concurrent_streams` are still being cleared away (grpc/grpc#34763), asks a client that resets its calls to answer pings
(#34637), and lowers the number of its streams (#34642). It has the limit of metadata since 1.57, where CVE-2023-33953 was fixed,
and reads header blocks as they come, CONTINUATION or not (#33597).
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.calls import INFER, INFER_STREAM, PATIENCE_SECONDS
from tests.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    read_frames,
    write_frame,
    write_headers,
)
from tests.wounds.conftest import Victim

CONTINUATION, PING, ACK = 9, 6, 1
CANCEL = struct.pack(">I", 8)
CALLS_OF_ANOTHER = 20


@contextmanager
def connected(victim: Victim) -> Iterator[socket.socket]:
    """Open an HTTP/2 connection and acknowledge the server's settings; what comes over it is read, and forgotten."""
    host, _, port = victim.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(PREFACE + write_frame(SETTINGS, 0, 0))
        frames = read_frames(connection)
        next(frame for frame in frames if frame[:2] == (SETTINGS, 0))
        connection.sendall(write_frame(SETTINGS, ACK, 0))
        reader = threading.Thread(target=lambda: _read_all(frames))
        reader.start()
        yield connection
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        reader.join()


def _read_all(frames: Iterator[tuple[int, int, int]]) -> None:
    with suppress(OSError):
        for _ in frames:
            pass


def call_headers(method: str) -> bytes:
    """Write the header fields of a call."""
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x")]
    return write_headers([*pseudo, ("te", "trailers"), ("content-type", "application/grpc")])


@pytest.mark.parametrize("method", [INFER, INFER_STREAM, "/no.Such/Method"], ids=["Infer", "InferStream", "no method"])
def test_calls_that_are_reset_at_once_keep_nobody_else_from_being_answered(victim: Victim, method: str) -> None:
    """CVE-2023-44487, rapid reset: a client begins calls and resets them, and so never has more than a few open."""
    fields = call_headers(method)
    with victim.growing_at_most(96), connected(victim) as connection:
        for turn in range(CALLS_OF_ANOTHER):
            frames = []
            for number in range(turn * 500, (turn + 1) * 500):
                stream = 2 * number + 1
                frames.append(write_frame(HEADERS, END_HEADERS, stream, fields))
                frames.append(write_frame(DATA, END_STREAM, stream, bytes(5)))
                frames.append(write_frame(RST_STREAM, 0, stream, CANCEL))
            with suppress(OSError):  # it may have been sent away
                connection.sendall(b"".join(frames))
            victim.check_that_it_answers()


@pytest.mark.parametrize(("size", "connections"), [(16_384, 12), (1, 1)], ids=["of 16 KiB", "of one byte"])
def test_blocks_of_headers_without_end_are_read_and_not_kept(victim: Victim, size: int, connections: int) -> None:
    """CVE-2024-27316, CONTINUATION flood: headers go on in frame after frame, and are kept until the last.

    grpcio keeps up to 16 MiB of a connection's, and less only of one that has acknowledged to have been told so, as these have.
    """
    field = b"\0\x01x" + b"\x7f" + b"\xe1\x7e" + b"v" * (127 + 0x61 + 0x7E * 128)  # one header field with a value of 16 KB
    block = field * 960 if size > 1 else field * 4
    frames = b"".join(write_frame(CONTINUATION, 0, 1, block[at : at + size]) for at in range(0, len(block), size))
    with victim.growing_at_most(80), ExitStack() as stack:
        for _ in range(connections):
            connection = stack.enter_context(connected(victim))
            with suppress(OSError):
                connection.sendall(write_frame(HEADERS, 0, 1, call_headers(INFER)) + frames)
        victim.check_that_it_answers()


def test_pings_and_settings_without_end_are_answered_with_goodbye(victim: Victim) -> None:
    """CVE-2019-9512 and CVE-2019-9515, which rapid reset came after: each frame wants an answer, which nobody reads."""
    host, _, port = victim.address.rpartition(":")
    with victim.growing_at_most(32), socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(PREFACE + write_frame(SETTINGS, 0, 0))
        with suppress(OSError):
            for _ in range(20):
                connection.sendall(write_frame(PING, 0, 0, bytes(8)) * 500 + write_frame(SETTINGS, 0, 0) * 500)
        victim.check_that_it_answers()
        with suppress(ConnectionError):
            assert GOAWAY in (kind for kind, _, _ in read_frames(connection))
