"""The host's memory allocator, set up for models that compute on the CPU."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""The names that glibc's mallopt knows; source: its `malloc.h`."""

NEVER = 2**31 - 1
"""In bytes."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next flight, rather than give it back to the kernel. For the whole process.

    A CPU's activations are of the same sizes flight after flight. Given back, they come as new pages each time, which the kernel
    has to clear: that is a quarter of the time of a ResNet-18 at 32 rows. All threads share one arena, for the others' parts are of
    64 MiB at the most and larger pieces would go to the kernel again. Nothing happens where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for name, value in ((TRIM_THRESHOLD, NEVER), (MMAP_THRESHOLD, NEVER), (ARENA_MAX, 1)):
        mallopt(name, value)
