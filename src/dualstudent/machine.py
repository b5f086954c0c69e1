"""What a process asks of the machine it runs on: memory that stays, in large pages."""

import ctypes
import sys

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2  # malloc.h
HUGE = 14  # MADV_HUGEPAGE
PAGE, RESERVED = 2 << 20, 4 << 30  # of addresses; memory comes when they are used


def keep_memory() -> bool:
    """Let the C library keep freed memory instead of handing it back and faulting it in again.

    For the whole process; returns whether it could (glibc only). On a CPU, activations of more than
    32 MB are otherwise mapped anew at every operation: with LeNet-5 and a 32×32 generator at batch
    256 that is a fifth of the time (docs/performance.md). Linux is asked for large pages, where it has
    them: a page fault, of 2 MB instead of 4 KB, can take 10 μs on a virtual machine.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (AttributeError, OSError):
        return False
    kept = all(mallopt(*pair) for pair in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20)))
    if kept:
        _large_pages(library)
    return kept


def _large_pages(library: ctypes.CDLL) -> None:
    """Take addresses for the heap at once, say that they are for large pages, and give them back to it."""
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.free.argtypes = [ctypes.c_void_p]
    if (start := library.malloc(RESERVED)) is None:  # not allowed so many: as it was
        return
    whole = -(-start // PAGE) * PAGE
    library.madvise(whole, RESERVED - PAGE, HUGE)
    library.free(start)
