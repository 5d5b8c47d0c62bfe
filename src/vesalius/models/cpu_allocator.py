"""Configure glibc's malloc to keep freed memory, since consecutive steps allocate the same sizes."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Stop glibc from returning freed memory to the system; True if this took effect, False without glibc.

    PyTorch allocates CPU tensors with malloc, which maps each large tensor anew, with one page fault per page; reusing
    freed memory avoids that (`benchmarks/training_step.py` measures it). The setting is process-wide and the process
    never shrinks, so only programs that own their process call it, before they allocate the first large tensor.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) == 1 for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, MOST), (M_TOP_PAD, 2**28)))
