"""Standard output and standard error for which nothing in the process waits, whoever reads them, and however slowly."""

import atexit
import io
import logging
import os
import select
import stat
import sys
import threading
import time
from queue import SimpleQueue
from typing import TextIO

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 2**20
"""What is kept of each stream until it has been written; a line beyond it is dropped."""
FLUSH_SECONDS = 1.0
"""How long the end of the process waits for what has not been written."""


class UnwaitedStream(io.RawIOBase):
    """A standard stream whose writes return at once: a thread of its own hands the lines on, as they can be written.

    A line for which there is no room, or that cannot be written because the reader has gone or the disk is full, is dropped and
    counted. The log says how many were, when one has been written again.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        """Take over a descriptor; what libraries write to it themselves does not wait either, from now on."""
        self.name = name
        self.dropped = 0
        self._descriptor = descriptor
        self._told = 0
        self._is_torn = False
        self._waiting_bytes = 0
        self._lock = threading.RLock()  # held for a sum at a time
        self._lines: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._file = os.dup(descriptor)
        _unblock(descriptor)
        threading.Thread(target=self._run, name=f"write {name}", daemon=True).start()

    def write(self, data: object, /) -> int:
        """Take what was written, lines as a rule, or drop it."""
        taken = bytes(data)  # type: ignore[call-overload]  # anything with a buffer
        with self._lock:
            if self._waiting_bytes + len(taken) > MAX_WAITING_BYTES:
                self.dropped += 1
            else:
                self._waiting_bytes += len(taken)
                self._lines.put(taken)
        return len(taken)

    def mark(self) -> threading.Event:
        """Return an event that is set when all that has been taken until now has been written or dropped."""
        reached = threading.Event()
        self._lines.put(reached)
        return reached

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._write_whole(line)
            except OSError:  # no reader any more, a full disk
                with self._lock:
                    self.dropped += 1
            else:
                self._tell_dropped()
            with self._lock:
                self._waiting_bytes -= len(line)

    def _write_whole(self, line: bytes) -> None:
        left = memoryview(b"\n" + line if self._is_torn else line)
        while left:
            try:
                left = left[os.write(self._file, left) :]
                self._is_torn = bool(left)
            except BlockingIOError:
                select.select([], [self._file], [])

    def _tell_dropped(self) -> None:
        dropped, self._told = self.dropped - self._told, self.dropped
        if dropped:
            logger.warning("%d lines dropped, which %s could not take", dropped, self.name)


def take_standard_streams() -> None:
    """Make standard output and standard error streams for which nobody waits, for as long as the process lives."""
    for name, descriptor, title in (("stdout", 1, "standard output"), ("stderr", 2, "standard error")):
        _open_if_closed(descriptor)
        stream = UnwaitedStream(title, descriptor)
        setattr(sys, name, io.TextIOWrapper(stream, "utf-8", "backslashreplace", line_buffering=True))
    atexit.register(flush_standard_streams)


def count_dropped() -> int:
    """Return how many lines of the log have been dropped."""
    return sum(stream.dropped for stream in _taken(sys.stderr))


def flush_standard_streams() -> None:
    """Wait for what has been written, where these are streams for which nobody waits: for FLUSH_SECONDS at most."""
    until = time.monotonic() + FLUSH_SECONDS
    for reached in [stream.mark() for stream in _taken(sys.stdout, sys.stderr)]:
        reached.wait(max(0.0, until - time.monotonic()))


def _taken(*files: TextIO) -> list[UnwaitedStream]:
    streams: list[object] = [getattr(file, "buffer", None) for file in files]
    return [stream for stream in streams if isinstance(stream, UnwaitedStream)]


def _open_if_closed(descriptor: int) -> None:
    """Open the null device where the process was begun without the stream: the number would be that of some other file."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _unblock(descriptor: int) -> None:
    """Let nobody who writes to the descriptor wait: a pipe, a socket or a terminal that is full takes nothing.

    A pipe or a terminal is opened anew, for other processes that share it may want to wait. A file has no reader to wait for.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # it has no reader, or belongs to another user
            if stat.S_ISFIFO(mode):
                os.set_blocking(descriptor, False)
        else:
            os.dup2(own, descriptor)
            os.close(own)
    elif stat.S_ISSOCK(mode):
        os.set_blocking(descriptor, False)
