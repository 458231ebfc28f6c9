"""What belongs to a process as a whole: its event loop, its log, gRPC's own settings, and its end."""

import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

MAX_OPEN_FILES = 2**16
GRPC_DEFAULTS = {
    # grpcio 1.80 turned on a poller that `grpc.aio` is slower with (grpc/grpc#41895).
    "GRPC_EXPERIMENTS": "-event_engine_listener",
    # Its core writes to standard error by itself, in a form of its own.
    "GRPC_VERBOSITY": "ERROR",
}
"""Variables that `grpc` reads when it is imported, where the operator has not set them."""


def begin_with_grpc_defaults() -> None:
    """Begin this process anew, under the same number, unless gRPC's variables are set: `grpc` has been imported without them."""
    if not GRPC_DEFAULTS.keys() <= os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, GRPC_DEFAULTS | dict(os.environ))


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


class _JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})  # what a line says, besides its message
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: str, as_json: bool) -> None:
    """Log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def end_process(code: int) -> None:
    """End the process without waiting for threads: a stuck member's thread never ends by itself."""
    logging.shutdown()
    os._exit(code)
