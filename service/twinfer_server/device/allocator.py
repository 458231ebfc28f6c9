"""The host's memory allocator, set up for models that compute on the CPU."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""The names that glibc's mallopt knows; source: its `malloc.h`."""

NEVER = 2**31 - 1
"""In bytes."""

WORTH_BYTES = 128 * 2**20
"""What is freed is left where it is until it is so much: the next flight would have to have it cleared by the kernel."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next flight, rather than give it back to the kernel. For the whole process.

    A CPU's activations are of the same sizes flight after flight. Given back, they come as new pages each time, which the kernel
    has to clear: that is a quarter of the time of a ResNet-18 at 32 rows. All threads share one arena, for the others' parts are of
    64 MiB at the most and larger pieces would go to the kernel again. Nothing happens where the C library is not glibc.
    """
    mallopt = _find("mallopt")
    if mallopt is not None:
        for name, value in ((TRIM_THRESHOLD, NEVER), (MMAP_THRESHOLD, NEVER), (ARENA_MAX, 1)):
            mallopt(name, value)


class FreedMemory:
    """What the process has freed and kept, as after a flood of large requests; given back where that is worth it."""

    def __init__(self) -> None:
        """Leave what the process has now as it is."""
        self._malloc_trim = _find("malloc_trim")
        self._kept_bytes = _resident_bytes()

    def give_back(self) -> None:
        """Give what is free to the kernel if the process has grown by much since this was last done; who allocates waits for it."""
        if self._malloc_trim is not None and _resident_bytes() > self._kept_bytes + WORTH_BYTES:
            self._malloc_trim(0)
            self._kept_bytes = _resident_bytes()


def _find(name: str) -> Any:
    """Find a function of glibc; None where the C library is another one."""
    try:
        return getattr(ctypes.CDLL(None), name) if sys.platform == "linux" else None
    except (AttributeError, OSError):
        return None


def _resident_bytes() -> int:
    """Give the memory that the process has now, on Linux. Source: proc_pid_statm(5)."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
