"""How this process deals with memory that it has freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h: how much free memory goes back to the system, and how many blocks come straight from it."""


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones, which then need no pages from the system.

    Otherwise every large tensor is given back when it is freed, and a CPU spends a tenth to a quarter of a step on page
    faults. For the whole process; where another allocator serves, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
