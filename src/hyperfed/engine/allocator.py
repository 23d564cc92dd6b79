"""Memory that training frees stays with the process instead of going back to the system after every step."""

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_memory() -> None:
    """Tell glibc's malloc to keep what is freed.

    A step of SGD allocates every activation anew. By default glibc gives a few megabytes at the top of its heap back after each step and
    takes zeroed pages for the next: thousands of page faults, about an eighth of the time of a small convolutional network
    (``python -m benchmarks allocator``), less in a whole run. What is computed does not change, nor does the peak of
    memory; between peaks the process keeps it. Does nothing where the allocator is not glibc's, or where the user has chosen settings
    (``MALLOC_...`` or ``GLIBC_TUNABLES`` in the environment).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with suppress(OSError, AttributeError, TypeError):  # not glibc: no such function; on Windows no such library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
