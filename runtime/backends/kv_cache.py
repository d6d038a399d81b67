"""The caches of one graph, for one sequence or several: allocated to a length, updated in place or row by row.

A graph with in-place caches has an output for every cache, bound to the same buffer. A graph with read-only caches has
an output with its new rows, which are copied in here. Which output belongs to which cache, the manifest says.
Caches in 8 bits are pairs of codes and scales; this module interprets neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner, Step

__all__ = ["CacheSet", "cache_set_from_runner", "resized"]


@dataclass
class CacheSet:
    """Caches (B,H_kv,length,head_dim) by the name of the graph's input; scales are (B,H_kv,length,1)."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, str]  # by the name of the input that each belongs to
    in_place: bool
    buffers: dict[str, Buffer] = field(default_factory=dict)

    @property
    def fixed_rows(self) -> int | None:
        """The fixed cache length of the graph; None: any."""
        lengths = {tensor.dims[2] for tensor in self.inputs.values()}
        fixed = [length for length in lengths if isinstance(length, int)]
        return min(fixed, default=None)

    @property
    def batch(self) -> int:
        """The number of sequences that fit."""
        return next((buffer.shape[0] for buffer in self.buffers.values()), 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one sequence in all caches, as the library holds them."""
        tensors = self.inputs.values()
        return sum(int(t.dims[1]) * int(t.dims[3]) * np.dtype(t.storage).itemsize for t in tensors)

    def entries(self, start: int, stop: int) -> CacheSet:
        """The caches of sequences start..stop-1: views, unless that is all of them."""
        if (start, stop) == (0, self.batch):
            return self
        views = {name: buffer.entries(start, stop) for name, buffer in self.buffers.items()}
        return CacheSet(self.inputs, self.outputs, self.in_place, views)

    def resize(self, backend: Backend, entries: int, length: int, keep_rows: int) -> None:
        """Reallocate for `entries` sequences of `length` rows, keeping the first `keep_rows`."""
        for name, tensor in self.inputs.items():
            # One at a time: the old cache of a layer is freed before the next layer's is allocated.
            if name in self.buffers:
                self.buffers[name] = resized(backend, self.buffers[name], entries, length, keep_rows)
            else:
                _, heads, _, width = tensor.dims
                shape = (entries, int(heads), length, int(width))
                self.buffers[name] = backend.allocate(shape, tensor.storage, for_cache=True)

    def as_outputs(self) -> dict[str, Buffer]:
        """The same buffers under the names of the graph's outputs."""
        return {self.outputs[name]: buffer for name, buffer in self.buffers.items()}

    def new_row_buffers(self, backend: Backend, rows: int) -> dict[str, Buffer] | None:
        """Buffers for the graph's new rows; None where it updates the caches itself."""
        if self.in_place:
            return None
        return {
            self.outputs[name]: backend.allocate((self.batch, int(t.dims[1]), rows, int(t.dims[3])), t.storage)
            for name, t in self.inputs.items()
        }

    def store_step(self, backend: Backend, new_rows: Mapping[str, Buffer] | None, start: Buffer) -> tuple[Step, ...]:
        """`store` as steps that read the position from `start`; none for in-place caches."""
        if not new_rows:
            return ()
        rows = [new_rows[self.outputs[name]] for name in self.buffers]
        return (backend.store_rows(list(self.buffers.values()), rows, start),)

    def store(self, new_rows: Mapping[str, Buffer] | None, start: int) -> None:
        """Copy the new rows of every sequence to position `start`; does nothing for in-place caches."""
        if not new_rows:
            return
        for name, buffer in self.buffers.items():
            rows = new_rows[self.outputs[name]]
            buffer.copy_rows(rows, rows.shape[2], start)


def cache_set_from_runner(runner: Runner) -> CacheSet:
    """The caches declared by a graph, not yet allocated."""
    outputs = [tensor for tensor in runner.outputs.values() if tensor.is_cache]
    names = {tensor.of: tensor.name for tensor in outputs}
    in_place = all(tensor.role in ("cache", "cache_scale") for tensor in outputs)
    return CacheSet({name: tensor for name, tensor in runner.inputs.items() if name in names}, names, in_place)


def resized(backend: Backend, buffer: Buffer, entries: int, length: int, keep_rows: int) -> Buffer:
    """A buffer with another number of entries or rows, with the first `keep_rows` of `buffer`."""
    if buffer.shape[0] == entries:
        return buffer.with_rows(length, keep_rows)
    shape = (entries, *buffer.shape[1:-2], length, buffer.shape[-1])
    new = backend.allocate(shape, buffer.dtype.name, for_cache=len(shape) == 4)
    both = min(entries, buffer.shape[0])
    new.entries(0, both).copy_rows(buffer.entries(0, both), keep_rows)
    return new
