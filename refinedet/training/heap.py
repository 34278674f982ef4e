"""The memory of a process that trains on the CPU."""

from __future__ import annotations

import ctypes
import os

# Of glibc's mallopt, see its manual page.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, for the next step: it takes the same tensors again.

    By default glibc gives a large tensor back to the system when it is freed, which hands it out again page by page,
    each zeroed: in a training step of VGG-16, 2.5 times the time of the ReLUs' gradients. Nothing is done, and False
    returned, where the C library is another one or where variables of the environment, MALLOC_..., have a say already.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return all([mallopt(name, value) == 1 for name, value in _NEVER.items()])
