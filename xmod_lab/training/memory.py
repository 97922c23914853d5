"""Keeping the memory of a step for the next one, on CPUs."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_memory() -> bool:
    """Let the C library keep freed memory instead of returning it. Returns whether it will.

    A training step allocates the same large tensors again and again (logits, gradients, weights in
    bfloat16). glibc maps each of them anew, and the system clears every page, which takes a third
    to a half of a step on a CPU. This needs Linux with glibc; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
