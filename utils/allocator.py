"""How the C library's allocator treats the memory that tensors on a CPU leave behind."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES = 2**30  # pieces up to this size stay with the process


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next tensor of its size instead of giving it back to the system.

    glibc gives large pieces back when they are freed, and the system hands them out again as empty pages, each made at
    its first touch. A training step frees and asks for the same gigabytes time after time. The price is a peak that
    fragments make higher; both are measured in docs/performance.md. Loader workers that are forked later inherit it.

    Returns:
        Whether the C library took it; False where there is no glibc (macOS, musl), and nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
