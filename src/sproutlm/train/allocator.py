"""Freed memory stays with the process, so that the next step's tensors find it ready.

glibc gives every block above a threshold back to the kernel when it is freed, and the kernel hands the next one out in
pages of 4 KB that it fills with zeros first. A training step frees and asks for the same large blocks again and again:
at GPT-2 124M in bf16 (1,024 tokens, one thread) 307,000 page faults and 0.58 of 3.26 seconds a step were spent on it,
with the blocks kept none.
"""

from __future__ import annotations

import ctypes
import sys

# Of malloc.h; each is set by mallopt(3), whose man page describes them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
NEVER = -1  # a threshold in bytes would be an int: at most 2 GB, which a step can free at once


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed, in one arena for all threads; False where it is not glibc.

    One arena, because each thread that computes a micro-batch would otherwise keep blocks that no other can use. The
    process's memory is then its highest so far, which a repeating step reaches at its first time.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 - musl's mallopt, where there is one, does nothing
    except (OSError, AttributeError):
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, NEVER))
    return all([mallopt(name, value) == 1 for name, value in settings])
