"""The alternate signal stack of a thread, kept as it is around libraries that change it. Knows no library.

OpenVINO's library for CPUs gives the thread that loads it another one, and puts back the former when its core is
deleted. Cores that are not deleted in the opposite order leave a stack that is gone: the next signal with a handler,
Ctrl-C for one, then ends the process with SIGSEGV and without a word.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["signal_stack_kept"]


class _SignalStack(ctypes.Structure):
    """stack_t of Linux, see sigaltstack(2)."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


_library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Whatever runs in the block, this thread has its alternate signal stack behind it again. Linux only."""
    if _library is None:
        yield
        return
    before = _SignalStack()
    _library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        _library.sigaltstack(ctypes.byref(before), None)
