"""What a process asks of the machine it runs on: memory that stays."""

import ctypes
import sys

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2  # malloc.h


def keep_memory() -> bool:
    """Let the C library keep freed memory instead of handing it back and faulting it in again.

    For the whole process; returns whether it could (glibc only). On a CPU, activations of more than
    32 MB are otherwise mapped anew at every operation: with LeNet-5 and a 32×32 generator at batch
    256 that is a fifth of the time (docs/performance.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(*pair) for pair in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20)))
