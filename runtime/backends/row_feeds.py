"""Inputs of decoder graphs that describe their rows: cache index, the row to predict from, rotary tables.

The rotary tables of all positions are computed once, block by block, so that a decode step copies one row of them.
Only this module turns positions into tables. Knows no model family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.families.family import Positions
from sdrpn.method.rope import RotaryFrequencies
from sdrpn.runtime.backends.runner import Array, Backend, Buffer

__all__ = ["STEP_INPUTS", "RowFeeds", "row_buffers", "step_buffers", "trial_rows"]

# The inputs that change from one decode step to the next, besides the token; `last_index` stays 0.
STEP_INPUTS = ("row_index", "write_index", "rope_cos", "rope_sin")
_INPUTS = (*STEP_INPUTS, "last_index")
_BLOCK_ROWS = 256  # rows by which the tables grow


class RowFeeds:
    """Makes these inputs in the type and layout of one variant's graphs. B sequences, S rows, d head_dim."""

    def __init__(
        self, frequencies: RotaryFrequencies, table: TensorInfo, axis_of: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Args:
        table: how the graphs take cosines and sines
        axis_of: (d/2,), the axis that each pair of channels turns by; None: there is one
        """
        self._axis_of = axis_of
        self._frequencies, self._dtype = frequencies, table.dtype
        self._heads = (1,) * (len(table.dims) - 3)  # the heads axis of the dialect primitive
        self._cos, self._sin = (self._stored(each) for each in frequencies.tables(np.arange(0)))

    def arrays(self, start: int, stop: int, positions: Positions | None = None) -> dict[str, Array]:
        """For rows start..stop-1 of one sequence, of which the last asks; None: at positions of the same numbers.

        row_index (1,S), write_index (1,), last_index (1,), rope_cos and rope_sin (1,S,d/2) or (1,1,S,d/2).
        """
        cos, sin = self._tables(start, stop, positions)
        shape = (1, *self._heads, stop - start, self._cos.shape[-1])
        return {
            "row_index": np.arange(start, stop, dtype=np.int64)[None],
            "write_index": np.array([start], np.int64),
            "last_index": np.array([stop - start - 1], np.int64),
            "rope_cos": cos.reshape(shape),
            "rope_sin": sin.reshape(shape),
        }

    def _tables(self, start: int, stop: int, positions: Positions | None) -> tuple[Array, Array]:
        if positions is None:
            self._require(stop)
            return self._cos[start:stop], self._sin[start:stop]
        rows = positions.rows[:, start:stop]
        found = self._frequencies.tables(rows[0] if self._axis_of is None else rows, self._axis_of)
        return self._stored(found[0]), self._stored(found[1])

    def of_step(self, rows: Sequence[int], positions: Sequence[int]) -> tuple[Array, Array, Array, Array]:
        """For one row of each sequence, in the order of STEP_INPUTS: (B,1), (B,) and twice (B,1,d/2) or (B,1,1,d/2).

        A token that is generated is at one position on all axes.
        """
        self._require(max(positions) + 1)
        index = np.array(rows, np.int64)
        where = slice(positions[0], positions[0] + 1) if len(positions) == 1 else list(positions)
        return index[:, None], index, self._cos[where], self._sin[where]

    def _require(self, positions: int) -> None:
        there = len(self._cos)
        if positions <= there:
            return
        new = np.arange(there, -(-positions // _BLOCK_ROWS) * _BLOCK_ROWS)
        cos, sin = (self._stored(table) for table in self._frequencies.tables(new))
        self._cos, self._sin = np.concatenate((self._cos, cos)), np.concatenate((self._sin, sin))

    def _stored(self, table: npt.NDArray[np.float32]) -> Array:
        """A table (N,d/2) -> (N,1,d/2) or (N,1,1,d/2), rounded to the graphs' type: one entry per step."""
        shaped = table.reshape(len(table), *self._heads, 1, table.shape[-1])
        return _in_bf16(shaped) if self._dtype == "bfloat16" else shaped.astype(self._dtype)


def row_buffers(backend: Backend, inputs: Mapping[str, TensorInfo], arrays: Mapping[str, Array]) -> dict[str, Buffer]:
    """Buffers with those of `arrays` that are inputs of a graph."""
    buffers = {}
    for name in inputs.keys() & arrays.keys():
        buffers[name] = backend.allocate(arrays[name].shape, inputs[name].storage, for_host=True)
        buffers[name].write(arrays[name])
    return buffers


def step_buffers(backend: Backend, inputs: Mapping[str, TensorInfo], batch: int) -> dict[str, Buffer]:
    """Buffers for a decode step of B sequences; zeros until the step writes them."""
    extents = {"batch": batch, "sequence": 1}
    return {
        name: backend.allocate(
            tuple(extents[dim] if isinstance(dim, str) else dim for dim in inputs[name].dims),
            inputs[name].storage,
            for_host=True,
        )
        for name in _INPUTS
        if name in inputs
    }


def trial_rows(inputs: Iterable[TensorInfo], start: int, stop: int) -> dict[str, Array]:
    """Inputs for rows start..stop-1 to try a graph by itself, with arbitrary frequencies."""
    taken = {tensor.name: tensor for tensor in inputs if tensor.role != "look"}  # a tower has rotary tables of its own
    if "rope_cos" not in taken:  # a graph without layers may ask for one row all the same
        return {"last_index": np.array([stop - start - 1], np.int64)} if "last_index" in taken else {}
    pairs = int(taken["rope_cos"].dims[-1])
    frequencies = RotaryFrequencies(tuple(float(np.float32(10_000.0 ** (-pair / pairs))) for pair in range(pairs)))
    arrays = RowFeeds(frequencies, taken["rope_cos"]).arrays(start, stop)
    return {name: array for name, array in arrays.items() if name in taken}


def _in_bf16(values: npt.NDArray[np.float32]) -> Array:
    """bf16 as bits, since NumPy has no such type: the upper half of every float32, rounded to nearest, ties to even."""
    bits: npt.NDArray[np.uint32] = np.ascontiguousarray(values).view(np.uint32)
    rounded: npt.NDArray[Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16)
