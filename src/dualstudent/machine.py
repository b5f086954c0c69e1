"""What a process asks of the machine it runs on: memory that stays, in large pages."""

import ctypes
import os
import sys
import threading
from pathlib import Path

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD, ARENA_MAX = -4, -1, -2, -8  # malloc.h
HUGE = 14  # MADV_HUGEPAGE
PAGE, RESERVED = 2 << 20, 4 << 30  # of addresses; memory comes when they are used
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def keep_memory() -> bool:
    """Let the C library keep freed memory instead of handing it back and faulting it in again.

    For the whole process; returns whether it could (glibc only). On a CPU, activations of more than
    32 MB are otherwise mapped anew at every operation: with LeNet-5 and a 32×32 generator at batch
    256 that is up to a third of the time (docs/performance.md). All threads have it from one heap, whose
    first 4 GB are of large pages where Linux has such and addresses are free: 512 times fewer faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (AttributeError, OSError):
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20), (ARENA_MAX, 1))
    kept = all(mallopt(*pair) for pair in settings)
    if kept and addresses_are_free():
        _large_pages(library)
    return kept


def addresses_are_free() -> bool:
    """Return whether nobody counts or fills addresses that are only taken."""
    import resource  # not on every system

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    endless = all(resource.getrlimit(limit)[0] == resource.RLIM_INFINITY for limit in limits)
    strict = OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == "2"
    filled = "MALLOC_PERTURB_" in os.environ or "malloc.perturb" in os.environ.get("GLIBC_TUNABLES", "")
    first = threading.current_thread() is threading.main_thread()
    return endless and not strict and not filled and first


def _large_pages(library: ctypes.CDLL) -> None:
    """Take addresses for the heap at once, say that they are for large pages, and give them back to it."""
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.free.argtypes = [ctypes.c_void_p]
    if (start := library.malloc(RESERVED)) is not None:
        library.madvise(-(-start // PAGE) * PAGE, RESERVED - PAGE, HUGE)
        library.free(start)
