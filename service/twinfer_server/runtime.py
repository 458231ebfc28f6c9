"""What belongs to a process as a whole: its event loop, its signals, gRPC's own settings, and its end."""

import asyncio
import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .standard_streams import flush_standard_streams

MAX_OPEN_FILES = 2**16
GRPC_DEFAULTS = {
    # grpcio 1.80 turned on a poller that `grpc.aio` is slower with (grpc/grpc#41895).
    "GRPC_EXPERIMENTS": "-event_engine_listener",
    # Its core writes to standard error by itself, in a form of its own.
    "GRPC_VERBOSITY": "ERROR",
}
"""Variables that `grpc` reads when it is imported, where the operator has not set them."""
NOWHERE = "/proc"
"""A folder in which there can be no new file."""


def begin_with_grpc_defaults() -> None:
    """Begin this process anew, under the same number, unless gRPC's variables are set: `grpc` has been imported without them."""
    if not GRPC_DEFAULTS.keys() <= os.environ.keys():
        if sys.stdout is not None:  # as it is where the process was begun without it
            sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, GRPC_DEFAULTS | dict(os.environ))


def list_missing_folders() -> list[str]:
    """Return a line for each folder in which libraries can keep nothing, and let them do without it.

    torch asks for a folder for temporary files when it is imported, to compile into one day.
    """
    lines, home = [], os.path.expanduser("~")
    if not (os.path.isabs(home) and os.access(home, os.W_OK)):
        lines.append(f"libraries keep nothing in HOME: found {os.environ.get('HOME', 'none')}, which cannot be written to")
    try:
        is_missing = tempfile.gettempdir() == NOWHERE
    except FileNotFoundError:
        is_missing, tempfile.tempdir = True, NOWHERE
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", NOWHERE)
    if is_missing:
        wanting = "what is compiled is not kept, and compiled packages and pickles cannot be loaded"
        lines.append(f"there is no folder for temporary files, so {wanting}; TMPDIR names one that can be written to")
    return lines


@contextmanager
def garbage_put_off() -> Iterator[None]:
    """Collect no garbage while the body imports, and leave what it has made out of all later collections.

    torch and what comes with it are hundred thousands of objects that live as long as the process; to walk them again and again
    takes a sixth of the time that importing them takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_garbage() -> None:
    """Collect once, and leave what is there now out of all later collections, for which every request would have to wait."""
    gc.collect()
    gc.freeze()


def allow_connections() -> None:
    """Let the process have as many connections as the system allows it: the first limit is often of 1,024 open files."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_loop(life: Coroutine[Any, Any, None]) -> None:
    """Run a process's life on uvloop, or on asyncio's own loop on Windows."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(life)
    else:
        uvloop.run(life)


class StopSignals:
    """SIGTERM and SIGINT: the first stops the server, the second ends the process at once, whatever it is doing."""

    def __init__(self) -> None:
        """Take the signals over; until `stopping` is called nothing is served, and the first one ends the process."""
        self._is_told = False
        self._stop: Callable[[], object] = lambda: end_process(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def stopping(self) -> asyncio.Event:
        """Return an event of the running loop that the first signal sets."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(event.set)
        return event

    def _on_signal(self, number: int, frame: object) -> None:
        # Not the loop's own handler, which a loop that stands still would never call.
        if self._is_told:
            os._exit(128 + number)
        self._is_told = True
        with suppress(RuntimeError):  # the loop is closed, and so the process about to end
            self._stop()


def end_process(code: int) -> None:
    """End the process without waiting for threads: a stuck member's thread never ends by itself."""
    logging.shutdown()
    flush_standard_streams()
    os._exit(code)
