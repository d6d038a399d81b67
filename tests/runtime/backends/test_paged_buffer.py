"""Caches in pages hold what caches in one piece hold."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.paged_buffer import BLOCK_ROWS, PagedBuffer, block_count
from sdrpn.runtime.backends.runner import Array

HEADS, WIDTH = 2, 4


def numbers(entries: int, rows: int, first: int = 1) -> Array:
    shape = (entries, HEADS, rows, WIDTH)
    return np.arange(first, first + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def paged(array: Array) -> PagedBuffer:
    buffer = PagedBuffer.zeros(array.shape, array.dtype)
    buffer.write(array)
    return buffer


@pytest.mark.parametrize(("rows", "blocks"), [(0, 0), (1, 1), (32, 1), (33, 2), (704, 22)])
def test_blocks_for_rows(rows: int, blocks: int) -> None:
    assert block_count(rows) == blocks


@pytest.mark.parametrize("entries", [1, 3])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 96])
def test_what_is_written_is_read(entries: int, rows: int) -> None:
    array = numbers(entries, rows)
    buffer = paged(array)
    assert buffer.shape == array.shape
    np.testing.assert_array_equal(buffer.read(), array)


def test_a_block_has_its_rows_for_every_head() -> None:
    array = numbers(2, 40)
    pages = paged(array).pages
    assert pages.shape == (4, HEADS, BLOCK_ROWS, WIDTH)
    np.testing.assert_array_equal(pages[0], array[0, :, :32])
    np.testing.assert_array_equal(pages[3, :, :8], array[1, :, 32:])


def test_it_can_be_filled() -> None:
    buffer = PagedBuffer.zeros((1, HEADS, 40, WIDTH), "float16")
    buffer.fill(lambda array: array.fill(2))
    assert buffer.dtype == np.float16
    assert (buffer.read() == 2).all()


def test_some_sequences_are_a_view() -> None:
    buffer = paged(numbers(3, 40))
    buffer.entries(1, 2).copy_rows(HostBuffer(numbers(1, 5, 1000)), 5, 30)
    expected = numbers(3, 40)
    expected[1, :, 30:35] = numbers(1, 5, 1000)[0]
    np.testing.assert_array_equal(buffer.read(), expected)


@pytest.mark.parametrize("rows", [0, 1, 32, 45, 64])
def test_rows_between_pages_of_other_lengths(rows: int) -> None:
    target, source = paged(numbers(2, 70)), paged(numbers(2, 64, 5000))
    target.copy_rows(source, rows)
    expected = numbers(2, 70)
    expected[:, :, :rows] = source.read()[:, :, :rows]
    np.testing.assert_array_equal(target.read(), expected)


@pytest.mark.parametrize("start", [0, 1, 31, 32, 50])
def test_rows_in_one_piece_at_any_place(start: int) -> None:
    target, rows = paged(numbers(1, 90)), numbers(1, 40, 5000)
    target.copy_rows(HostBuffer(rows), 40, start)
    expected = numbers(1, 90)
    expected[:, :, start : start + 40] = rows
    np.testing.assert_array_equal(target.read(), expected)


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.parametrize("rows", [40, 64, 65, 200])
def test_another_length_keeps_rows(entries: int, rows: int) -> None:
    array = numbers(entries, 64)
    grown = paged(array).with_rows(rows, 40)
    assert grown.shape == (entries, HEADS, rows, WIDTH)
    np.testing.assert_array_equal(grown.read()[:, :, :40], array[:, :, :40])


def test_the_blocks_of_one_sequence_stay_where_they_are() -> None:
    buffer = paged(numbers(1, 128))
    shorter = buffer.with_rows(64, 64)
    longer = shorter.with_rows(128, 64)
    assert longer.pages.ctypes.data == buffer.pages.ctypes.data
    np.testing.assert_array_equal(longer.read()[:, :, :64], numbers(1, 128)[:, :, :64])


def test_heads_have_no_view() -> None:
    with pytest.raises(RunFailed, match=r"a cache in pages \(1, 2, 32, 4\) has no view of 0:1 along its second axis"):
        PagedBuffer.zeros((1, HEADS, 32, WIDTH), "float32").rows(0, 1)
