"""The C library's allocator, told to keep what was freed: a step needs the same memory as the one before."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Stop glibc from handing freed tensors back to the system; True where that took effect.

    PyTorch allocates each tensor on a CPU with malloc, which maps large ones anew each time, page fault by page
    fault. Kept, they cost nothing (`benchmarks/training_step.py` measures it). To be called before the first
    large tensor, by programs that own their process; the process then never shrinks. Nothing happens without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(*setting) == 1 for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, MOST), (M_TOP_PAD, 2**28))
    )
