from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.runtime.backends.fake import FakeBackend
from sdrpn.runtime.backends.row_feeds import STEP_INPUTS, RowFeeds, row_buffers, step_buffers, trial_rows
from tests.runtime.fakes import HEAD_DIM, ROTARY


def inputs(dtype: str = "float32", heads: tuple[int, ...] = ()) -> dict[str, TensorInfo]:
    """The feeds of a trunk, which does not ask for `last_index`."""
    table: tuple[int | str, ...] = ("batch", *heads, "sequence", HEAD_DIM // 2)
    return {
        "row_index": TensorInfo("row_index", "int64", ("batch", "sequence")),
        "write_index": TensorInfo("write_index", "int64", ("batch",)),
        "rope_cos": TensorInfo("rope_cos", dtype, table),
        "rope_sin": TensorInfo("rope_sin", dtype, table),
    }


def feeds(dtype: str = "float32", heads: tuple[int, ...] = ()) -> RowFeeds:
    return RowFeeds(ROTARY, inputs(dtype, heads)["rope_cos"])


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 5), (3, 4), (250, 261), (1000, 1500)])
def test_tables_are_those_of_the_rows_own_numbers(start: int, stop: int) -> None:
    arrays = feeds().arrays(start, stop)
    np.testing.assert_array_equal(arrays["row_index"], [range(start, stop)])
    assert (arrays["write_index"].tolist(), arrays["last_index"].tolist()) == ([start], [stop - start - 1])
    for name, table in zip(("rope_cos", "rope_sin"), ROTARY.tables(np.arange(start, stop)), strict=True):
        np.testing.assert_array_equal(arrays[name], table[None])


@pytest.mark.parametrize("heads", [(), (1,)], ids=["fused", "primitive"])
def test_a_step_gets_what_a_run_of_one_row_gets(heads: tuple[int, ...]) -> None:
    rows = feeds(heads=heads)
    for row in (0, 7, 255, 256, 3000):  # the tables grow on the way
        arrays = rows.arrays(row, row + 1)
        for name, value in zip(STEP_INPUTS, rows.of_step([row], [row]), strict=True):
            np.testing.assert_array_equal(value, arrays[name])


@pytest.mark.parametrize("heads", [(), (1,)], ids=["fused", "primitive"])
def test_sequences_of_a_step_have_rows_and_positions_of_their_own(heads: tuple[int, ...]) -> None:
    rows = feeds(heads=heads)
    buffers = step_buffers(FakeBackend({}), inputs(heads=heads), 3)
    for name, value in zip(STEP_INPUTS, rows.of_step([4, 9, 0], [700, 9, 2]), strict=True):
        assert value.shape == buffers[name].shape
        buffers[name].write(value)
    assert buffers["row_index"].read().tolist() == [[4], [9], [0]]
    assert buffers["write_index"].read().tolist() == [4, 9, 0]
    cos, sin = ROTARY.tables(np.array([700, 9, 2]))
    np.testing.assert_array_equal(buffers["rope_cos"].read().reshape(3, -1), cos)
    np.testing.assert_array_equal(buffers["rope_sin"].read().reshape(3, -1), sin)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tables_are_rounded_to_the_graphs_type(dtype: str) -> None:
    exact = np.stack(ROTARY.tables(np.arange(700)))
    expected = exact.astype(ml_dtypes.bfloat16).view(np.uint16) if dtype == "bfloat16" else exact.astype(dtype)
    arrays = feeds(dtype).arrays(0, 700)
    np.testing.assert_array_equal(np.concatenate((arrays["rope_cos"], arrays["rope_sin"])), expected)


@pytest.mark.parametrize("heads", [(), (1,)], ids=["fused", "primitive"])
def test_a_graph_gets_what_it_takes_with_its_axes(heads: tuple[int, ...]) -> None:
    arrays = feeds("bfloat16", heads).arrays(2, 6)
    buffers = row_buffers(FakeBackend({}), inputs("bfloat16", heads), arrays)
    assert buffers.keys() == inputs().keys()
    assert buffers["rope_cos"].shape == (1, *heads, 4, HEAD_DIM // 2)
    assert buffers["rope_cos"].dtype == np.uint16
    np.testing.assert_array_equal(buffers["rope_sin"].read(), arrays["rope_sin"])


def test_a_trial_turns_by_angles_of_every_size() -> None:
    rows = trial_rows(inputs(heads=(1,)).values(), 5, 8)
    assert rows.keys() == inputs().keys()
    ones = np.ones((1, 1, 3, HEAD_DIM // 2))
    np.testing.assert_allclose(rows["rope_cos"] ** 2 + rows["rope_sin"] ** 2, ones, rtol=1e-6)
    np.testing.assert_allclose(rows["rope_cos"][0, 0, :, 0], np.cos([5.0, 6.0, 7.0]), rtol=1e-6)
    assert trial_rows([TensorInfo("pixel_values", "float32", ("images", 3, 4, 4))], 0, 1) == {}
