"""Freed memory stays in the process: the next step's tensors then need no fresh pages."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, and to take large tensors from it; return whether it did.

    Left alone, it maps every tensor above 32 MiB afresh and the kernel clears its pages one by one, which can take longer than
    the computation. The process then holds as much memory as it ever held at once. No effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows opens no library without a name
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
