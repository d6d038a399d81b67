"""Runs of graphs that OpenVINO has compiled: buffers bound to requests, and what ends one early."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from sdrpn.bundle.bundle import GraphInfo, TensorInfo
from sdrpn.errors import BadBundle, Cancelled, RunFailed, SdrpnError
from sdrpn.host.interrupt import Cancellation, SignalWatch
from sdrpn.runtime.backends.failures import first_line, graph_error
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.openvino_compiled import CompiledGraph, CompiledRequest
from sdrpn.runtime.backends.openvino_graph import CacheUse, PageTable
from sdrpn.runtime.backends.paged_buffer import PagedBuffer
from sdrpn.runtime.backends.runner import Array, Buffer, Step, check_bindings

__all__ = ["LIBRARY", "SAVED_SUFFIX", "Inference", "OpenVinoRunner", "loading_error"]

SAVED_SUFFIX = ".xml"  # of graphs that `sdrpn optimize` has saved
LIBRARY = f"OpenVINO {openvino.__version__.split('-')[0]}"


class Inference:
    """Runs requests, one after the other, so that `cancellation` can end them."""

    def __init__(self) -> None:
        self.cancellation = Cancellation(self._stop)
        self._process = os.getpid()
        self._running: openvino.InferRequest | None = None

    def run(self, request: openvino.InferRequest) -> None:
        """Run a request. Raises: RunFailed in a fork of the process that loaded it, where it would never end"""
        if os.getpid() != self._process:
            raise RunFailed(
                f"the graphs were loaded by process {self._process}, and OpenVINO's threads stay there; "
                "open the session again in this process"
            )
        self._running = request
        try:
            if not self.cancellation.wished:
                request.start_async()
                request.wait()
        finally:
            self._running = None

    def _stop(self, wished: bool) -> None:
        request = self._running
        if wished and request is not None:
            request.cancel()


class OpenVinoRunner:
    """A compiled graph."""

    def __init__(
        self, graph: GraphInfo, path: Path, compiled: CompiledGraph, caches: CacheUse, inference: Inference
    ) -> None:
        self.name, self._path = graph.name, path
        held = {name: tensor for tensor in compiled.inputs for name in tensor.get_names()}
        self.inputs = {tensor.name: _as_held(tensor, held, caches) for tensor in graph.inputs}
        self.outputs = {tensor.name: _as_held(tensor, held, caches) for tensor in graph.outputs}
        self.caches, self.inference = caches, inference
        self.types = {name: port.get_element_type() for name, port in held.items()}
        self._compiled: CompiledGraph | None = compiled

    def bind(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Step:
        """See `Runner.bind`."""
        symbols: dict[str, int] = {}
        check_bindings(self.name, "inputs", self.inputs, feeds, symbols)
        check_bindings(self.name, "outputs", self.outputs, results, symbols)
        self.request(symbols)
        return _BoundStep(self, dict(feeds), dict(results), symbols)

    def run(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        """See `Runner.run`."""
        self.bind(feeds, results)()

    @property
    def step_bytes(self) -> int | None:
        """See `HasSteps`."""
        return None if self._compiled is None else self._compiled.step_bytes

    def close(self) -> None:
        """Drop the compiled graph."""
        self._compiled = None

    def request(self, extents: Mapping[str, int]) -> CompiledRequest:
        """The request for these extents of dynamic dimensions.

        Raises: RunFailed after `close`; as `OpenVinoBackend.load` where a device compiles for each of them
        """
        if self._compiled is None:
            raise RunFailed(f"the {self.name} graph was closed; open the session again")
        try:
            return self._compiled.request(extents)
        except SdrpnError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and its subclasses
            raise loading_error(self._path, error) from error


class _BoundStep:
    """A run with bound buffers, which become the tensors of the request when another step has used it since."""

    def __init__(
        self,
        runner: OpenVinoRunner,
        feeds: dict[str, Buffer],
        results: dict[str, Buffer],
        symbols: Mapping[str, int],
    ) -> None:
        self._runner, self._feeds, self._results, self._extents = runner, feeds, results, dict(symbols)
        caches, types = runner.caches, runner.types
        self._inputs = {
            name: _tensor(_array(feeds[name]), types[name])
            for name in feeds.keys() & types.keys()
            if name not in caches.returned
        }
        self._outputs = {
            name: _tensor(_array(buffer))
            for name, buffer in results.items()
            if name not in caches.returned.values() and not isinstance(buffer, PagedBuffer)
        }
        self._pages = {name: _array(feeds[name]) for name in caches.paged}
        self._start = feeds["write_index"] if caches.paged or caches.returned else None
        self._new_rows = symbols.get("sequence", 0)
        self._length = symbols.get("cache_length", 0)
        self._table = self._page_table(symbols) if caches.paged else None
        self._returned = {
            cache: np.zeros((*feeds[cache].shape[:2], self._new_rows, feeds[cache].shape[3]), feeds[cache].dtype)
            for cache in caches.returned
        }
        self._outputs |= {caches.returned[cache]: _tensor(rows) for cache, rows in self._returned.items()}
        self._cancellation = runner.inference.cancellation
        self._watch = SignalWatch(self._cancellation.cancel, self._cancellation.reset)

    def _page_table(self, symbols: Mapping[str, int]) -> dict[str, Array]:
        """The arrays of the inputs of `PageTable`."""
        batch = symbols["batch"]
        paged = self._feeds[next(iter(self._runner.caches.paged))]
        assert isinstance(paged, PagedBuffer)
        table = {
            PageTable.PAST: np.zeros(batch, np.int32),
            PageTable.BEGINS: np.arange(batch + 1, dtype=np.int32) * np.int32(self._new_rows),
            PageTable.BLOCKS: np.arange(batch * paged.blocks, dtype=np.int32),
            PageTable.BLOCK_BEGINS: np.arange(batch + 1, dtype=np.int32) * np.int32(paged.blocks),
            PageTable.LONGEST: np.zeros((), np.int32),
        }
        self._inputs |= {name: _tensor(array) for name, array in table.items()}
        return table

    def __call__(self) -> None:
        held = self._runner.request(self._extents)
        request = held.request
        starts = [] if self._start is None else self._start.read().tolist()
        self._place(starts)
        for cache in self._returned:
            self._inputs[cache] = _tensor(np.ascontiguousarray(self._feeds[cache].read()))
            request.set_tensor(cache, self._inputs[cache])
        if held.bound is not self:
            for name, tensor in self._inputs.items():
                if name in held.inputs:
                    request.set_tensor(name, tensor)
            for name, tensor in self._outputs.items():
                request.set_tensor(name, tensor)
            held.bound = self
        if held.caches is not None and self._table is not None:
            held.caches.pages, held.caches.past = self._pages, self._table[PageTable.PAST]
        try:
            with self._watch:
                self._runner.inference.run(request)
        except SdrpnError:
            raise
        except Exception as error:  # OpenVINO's exceptions have no common base except RuntimeError
            held.bound = None
            raise self._failure(error) from error
        if self._cancellation.wished or self._watch.ended:
            raise self._cancelled()
        for cache, rows in self._returned.items():
            for entry, start in enumerate(starts):
                place = self._feeds[cache].entries(entry, entry + 1)
                place.copy_rows(HostBuffer(rows[entry : entry + 1]), self._new_rows, start)

    def _place(self, starts: Sequence[int]) -> None:
        """Say where the new rows belong. Rows outside of the caches are refused: the library does not check them."""
        for start in starts:
            if not 0 <= start <= self._length - self._new_rows:
                raise BadBundle(
                    f"the {self._runner.name} graph failed in {LIBRARY}: {self._new_rows} rows at {start} are outside "
                    f"of caches of {self._length} rows; export the bundle again"
                )
        if self._table is not None:
            self._table[PageTable.PAST][:] = starts
            self._table[PageTable.LONGEST][()] = max(starts) + self._new_rows

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"the {self._runner.name} graph was cancelled before it finished; ask again")

    def _failure(self, error: Exception) -> SdrpnError:
        """The error of a failed run. Names, types and shapes were checked before: the cause is memory, or the graph."""
        if self._cancellation.wished or self._watch.ended:
            return self._cancelled()
        return graph_error(f"the {self._runner.name} graph failed in {LIBRARY}: {first_line(error)}", error)


def _as_held(tensor: TensorInfo, held: Mapping[str, Any], caches: CacheUse) -> TensorInfo:
    """A cache in the type and width in which the library holds it."""
    cache = tensor.of or tensor.name
    if not tensor.is_cache or cache not in held:
        return tensor
    width = held[cache].get_partial_shape()[-1]  # in 8 bits, scale and offset of a row follow its codes
    dims = (*tensor.dims[:-1], width.get_length()) if cache in caches.paged else tensor.dims
    return dataclasses.replace(tensor, dtype=held[cache].get_element_type().to_dtype().name, dims=dims)


def _array(buffer: Buffer) -> Array:
    if isinstance(buffer, PagedBuffer):
        return buffer.pages
    assert isinstance(buffer, HostBuffer)
    return buffer.array


def _tensor(array: Array, dtype: Any = None) -> openvino.Tensor:
    """The array's own memory as a tensor. NumPy lacks some types: their bits are in integers."""
    if dtype is None or array.dtype == dtype.to_dtype():
        return openvino.Tensor(array, shared_memory=True)
    return openvino.Tensor(array, array.shape, dtype)


def loading_error(path: Path, error: BaseException) -> SdrpnError:
    """The error for a graph that the library refuses, or has no memory for."""
    reason = f"{LIBRARY} cannot load {path}: {first_line(error)}"
    return graph_error(reason, error, saved=path.suffix == SAVED_SUFFIX)
