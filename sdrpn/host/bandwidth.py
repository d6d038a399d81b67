"""Measure how fast this machine reads memory. Knows no model."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["read_bandwidth"]

_BYTES = 256 << 20  # of all threads: more than processors cache
_REPEATS = 3


def read_bandwidth(threads: int) -> float:
    """Bytes per second that this many threads read, each an array of its own; the best of three times."""
    arrays = np.ones((threads, _BYTES // 8 // threads), np.int64)
    with ThreadPoolExecutor(threads) as pool:

        def seconds() -> float:
            start = time.perf_counter()
            for _ in pool.map(np.bitwise_or.reduce, arrays):  # which releases the interpreter, and is bound by memory
                pass
            return time.perf_counter() - start

        return float(arrays.nbytes / min(seconds() for _ in range(_REPEATS)))
