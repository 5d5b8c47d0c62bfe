"""glibc's allocator, configured to keep freed memory, since each step needs the same memory as the one before."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Stop glibc from returning freed memory to the system; True if that took effect, False without glibc.

    PyTorch allocates CPU tensors with malloc, which maps large ones anew each time, at one page fault a page. Kept memory
    costs nothing (`benchmarks/training_step.py` measures it). The setting holds for the whole process, whose memory then
    never shrinks: only programs that own their process call it, before the first large tensor.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(*setting) == 1 for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, MOST), (M_TOP_PAD, 2**28))
    )
