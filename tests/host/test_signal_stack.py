"""A thread's alternate signal stack is the same behind what changes it."""

from __future__ import annotations

import ctypes
import sys

import pytest

from sdrpn.host.signal_stack import _SignalStack, signal_stack_kept

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sigaltstack of Linux")


def current() -> tuple[int | None, int, int]:
    stack = _SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.ss_sp, stack.ss_flags, stack.ss_size


def test_it_is_put_back() -> None:
    before, other = current(), ctypes.create_string_buffer(1 << 16)
    with signal_stack_kept():
        stack = _SignalStack(ctypes.addressof(other), 0, len(other))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
        assert current() != before
    assert current() == before
