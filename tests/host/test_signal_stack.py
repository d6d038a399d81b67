"""A thread's alternate signal stack is the same behind what changes it."""

from __future__ import annotations

import ctypes
import gc
import sys

import pytest
from PIL import Image

import sdrpn
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


def test_sessions_with_openvino_leave_it() -> None:
    """Closed in the order in which they were opened, which is not the one that OpenVINO expects."""
    pytest.importorskip("openvino")
    before = current()
    first, second = (sdrpn.Session.open("demo", backend="openvino", threads=1) for _ in range(2))
    assert current() == before
    first.answer(Image.new("RGB", (300, 300)), "what is its code?", max_new_tokens=2)
    assert current() == before
    for session in (first, second):
        session.close()
        gc.collect()
        assert current() == before
