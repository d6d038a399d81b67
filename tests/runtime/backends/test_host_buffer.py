from __future__ import annotations

import numpy as np
import pytest

from sdrpn.runtime.backends.host_buffer import HostBuffer

HEADS, WIDTH = 3, 2


def filled(rows: int) -> HostBuffer:
    values = np.arange(HEADS * rows * WIDTH, dtype=np.float32)
    return HostBuffer(values.reshape(1, HEADS, rows, WIDTH))


@pytest.mark.parametrize("after", [1, 4, 7, 8, 9, 16, 40])
@pytest.mark.parametrize("keep", [0, 1, 4, 8])
def test_kept_rows_survive_every_change_of_length(after: int, keep: int) -> None:
    buffer = filled(8)
    expected = buffer.read()[:, :, :keep].copy()
    kept = min(keep, after)
    for rows in (16, after, 16, after):  # the second time the memory is there already
        buffer = buffer.with_rows(rows, min(kept, rows))
    np.testing.assert_array_equal(buffer.read()[:, :, :kept], expected[:, :, :kept])
    assert buffer.shape == (1, HEADS, after, WIDTH)
    assert np.isfinite(buffer.read()).all()


def test_memory_is_used_again_and_a_much_longer_one_given_back() -> None:
    buffer = filled(16)
    address = buffer.pointer
    buffer = buffer.with_rows(8, 5)
    assert buffer.pointer == address
    buffer = buffer.with_rows(16, 5)
    assert buffer.pointer == address
    assert buffer.with_rows(3, 2).pointer != address


def test_a_view_shares_memory_and_an_odd_one_is_copied_when_it_grows() -> None:
    buffer = HostBuffer(np.arange(12, dtype=np.float32).reshape(1, 6, 2))
    view = buffer.rows(2, 4)
    view.write(np.full((1, 2, 2), 9.0, np.float32))
    np.testing.assert_array_equal(buffer.read()[0, :, 0], [0, 2, 9, 9, 8, 10])
    odd = HostBuffer(np.arange(24, dtype=np.float32).reshape(1, 3, 8)[:, :, ::2])
    np.testing.assert_array_equal(odd.with_rows(5, 3).read()[0, :3], odd.read()[0])
