"""OpenVINO: the bundle's own graphs, converted as they are loaded, on a CPU with caches in pages that it updates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino

from sdrpn.bundle.bundle import GraphInfo, TensorInfo
from sdrpn.errors import BadBundle, BadInput, Cancelled, RunFailed, SdrpnError
from sdrpn.host.freed_memory import drop_file_pages, trim_heap
from sdrpn.host.interrupt import Cancellation, SignalWatch
from sdrpn.host.machine import read_available_memory, read_cpu
from sdrpn.host.native_modules import native_module
from sdrpn.host.signal_stack import signal_stack_kept
from sdrpn.host.threads import choose_threads
from sdrpn.runtime.backends.arrays import run_on_arrays, trial_feeds
from sdrpn.runtime.backends.external_data import graph_with_real_files, require_files
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.openvino_compiled import CompiledGraph, CompiledRequest
from sdrpn.runtime.backends.openvino_device import OpenVinoDevice, device_named
from sdrpn.runtime.backends.openvino_graph import (
    CacheUse,
    PageTable,
    code_block,
    new_core,
    read_onnx,
    return_rows,
    use_pages,
)
from sdrpn.runtime.backends.openvino_info import MOST_COPIED_BYTES, STEPPED, STEPS_MODULE, has_fast_steps
from sdrpn.runtime.backends.openvino_steps import constant_products
from sdrpn.runtime.backends.paged_buffer import PagedBuffer
from sdrpn.runtime.backends.runner import Array, Buffer, Step, check_bindings, in_order, store_in_order

__all__ = ["OpenVinoBackend", "OpenVinoRunner"]

_LIBRARY = f"OpenVINO {openvino.__version__.split('-')[0]}"
# Messages of failures outside the graph: memory, disk, descriptors, threads.
_OF_THE_MACHINE = re.compile(
    r"bad_alloc|bad allocation|out of memory|failed to allocate|no space left|disk quota|input/output error"
    r"|too many open files|resource temporarily unavailable",
    re.IGNORECASE,
)


# Weights of a graph from which on it is run once when it is loaded: 7B in INT4 then peaks 4 GB lower.
_LARGE_BYTES = 100_000_000


class OpenVinoBackend:
    """Allocates buffers in ordinary memory and compiles graphs for a device."""

    def __init__(
        self,
        name: str = "openvino",
        threads: int | None = None,
        largest_matrix: int | None = None,
        *,
        device: str = "CPU",
        accurate: bool = False,
        activation_block: int | None = None,
        kv_cache: str | None = None,
        decode_copy: bool | None = None,
        vision_type: str | None = None,
    ) -> None:
        """Choose device and threads.

        Args:
            threads, largest_matrix: see `sdrpn.host.threads.choose_threads`
            device: OpenVINO's name of it
            accurate, activation_block, kv_cache, decode_copy, vision_type: see `OpenOptions`
        Raises: BadInput for threads out of range, a device that is not here, a type that it cannot compute in, or a
            copy of the matrices for decode steps that nothing would read
        """
        self._accurate, self._activation_block, self._kv_cache = accurate, activation_block, kv_cache
        self._decode_copy, self._vision_type = decode_copy, vision_type
        self._core = new_core()
        with signal_stack_kept():  # the device's library is loaded here
            self.device: OpenVinoDevice = device_named(self._core, device)
        if vision_type == "bf16":
            self.device.require_bf16(read_cpu())
        if decode_copy:
            self._require_steps()
        self.name = name
        self.on: Literal["cpu", "gpu"] = "cpu"
        self.note: str | None = None
        self.prefill_rows: int | None = None
        self.reads_whole_caches = False
        self.most_slots: int | None = None
        self.threads = choose_threads(threads, largest_matrix)
        self.cancellation = Cancellation(self._stop)
        self._running: openvino.InferRequest | None = None

    def free_memory(self) -> int | None:
        """See `Backend.free_memory`."""
        return read_available_memory()

    def allocate(
        self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False, for_cache: bool = False
    ) -> Buffer:
        """Allocate zeros; on a CPU, caches in pages."""
        paged = for_cache and self.device.paged
        return PagedBuffer.zeros(shape, dtype) if paged else HostBuffer.zeros(shape, dtype)

    def load(self, graph: GraphInfo, path: Path) -> OpenVinoRunner:
        """Convert and compile `path`; weights are mapped from its external files.

        A file that ends in .xml is one of `sdrpn optimize --for openvino`, with its weights beside it.

        Raises:
            BadBundle: the library refuses the graph, or it does not match `graph`
            RunFailed: not enough memory
        """
        if path.suffix == ".xml":
            return self._loaded(graph, path, [path.with_suffix(".bin")], lambda: self._core.read_model(path))
        content = path.read_bytes()
        require_files(path, content, graph.weights, _LIBRARY)
        if graph_with_real_files(content, path.parent) is not None:
            return self.load_content(graph, content, path)
        weights = [path.parent / file for file in graph.weights]
        return self._loaded(graph, path, weights, lambda: self._core.read_model(path))

    def load_content(self, graph: GraphInfo, content: bytes, path: Path) -> OpenVinoRunner:
        """As `load`, for what `path` would contain, in the folder that its weights' paths are relative to."""
        require_files(path, content, graph.weights, _LIBRARY)
        weights = [path.parent / file for file in graph.weights]
        return self._loaded(graph, path, weights, lambda: read_onnx(self._core, content, path.parent))

    def _loaded(
        self, graph: GraphInfo, path: Path, weights: Sequence[Path], read: Callable[[], openvino.Model]
    ) -> OpenVinoRunner:
        try:
            model = read()
            caches = use_pages(model, graph.name) if self.device.paged else return_rows(model)
            options = self._options(graph, code_block(model))
            compiled = CompiledGraph(self._core, model, graph, self.device, options)
        except SdrpnError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and its subclasses, and Python's own of a bad file
            raise _loading_error(path, error) from error
        _require_declared(path, graph, compiled.model, caches)
        runner = OpenVinoRunner(graph, path, compiled, caches, self)
        if self.device.paged and sum(file.stat().st_size for file in weights) >= _LARGE_BYTES:
            # Kernels pack matrices when they first run: now, before other graphs and caches are in memory.
            run_on_arrays(self, runner, trial_feeds(runner.inputs.values()))
        try:
            self._add_steps(graph, compiled)
        except Exception as error:  # as above; and memory that is not there, of the native module
            raise _loading_error(path, error) from error
        # What kernels have packed is not read again, and what the library has freed it need not keep.
        drop_file_pages(weights)
        trim_heap()
        return runner

    def _add_steps(self, graph: GraphInfo, compiled: CompiledGraph) -> None:
        """Run decode steps in a model of their own where that is faster, and the memory for it is not missed."""
        native = native_module(STEPS_MODULE)
        usual = not self._accurate and self._activation_block is None
        if native is None or graph.name not in STEPPED or not usual or not self.device.paged:
            return
        asked = has_fast_steps(native) if self._decode_copy is None else self._decode_copy
        products = constant_products(compiled.model) if asked else ()
        size = sum(product.matrix.nbytes for product in products)
        if products and (self._decode_copy or size <= MOST_COPIED_BYTES):
            compiled.add_steps(native, products)

    def _require_steps(self) -> None:
        """Raise BadInput where no graph would have decode steps of its own."""
        if not self.device.paged:
            raise BadInput(
                "decode_copy is for OpenVINO's device CPU, which has native decode steps; "
                f"{self.device.name} has none: leave it out",
                options=("decode-copy",),
            )
        if native_module(STEPS_MODULE) is None:
            raise BadInput(
                "decode_copy needs native decode steps, which were not compiled here; leave it out, or install sdrpn "
                "again with a C++20 compiler (`sdrpn doctor` shows what is there)",
                options=("decode-copy",),
            )
        if self._accurate or self._activation_block is not None:
            other = "accurate" if self._accurate else "activation_block"
            raise BadInput(
                f"decode_copy and {other} exclude each other: native decode steps round activations in the blocks of "
                "the weights; leave one of them out",
                options=("decode-copy", other.replace("_", "-")),
            )

    def _options(self, graph: GraphInfo, codes: int | None) -> dict[str, Any]:
        """Args: codes: the fewest rows of a matrix in 4 bits that share a scale; None: there is no such matrix"""
        # As long as those of the weights: 128 is 1.4 times as fast as 32.
        block = codes
        if self._accurate:
            block = 0
        elif self._activation_block is not None and codes is not None:
            block = self._activation_block
            if block and codes % block:
                raise BadInput(
                    f"activations in blocks of {block} cannot be multiplied with the {graph.name} graph's weights in "
                    f"blocks of {codes}; ask for a part of that, or 0 for floats",
                    options=("activation-block",),
                )
        return self.device.options(
            threads=self.threads.count,
            half_caches={tensor.dtype for tensor in graph.inputs if tensor.is_cache} == {"float16"},
            activation_block=block,
            accurate=self._accurate,
            coded_caches=self._kv_cache is not None and graph.name in STEPPED,
            bf16=self._vision_type == "bf16" and graph.name == "vision",
        )

    def store_rows(self, caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
        """See `Backend.store_rows`."""
        return store_in_order(caches, rows, start)

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """See `Backend.chain`."""
        return in_order(steps)

    def infer(self, request: openvino.InferRequest) -> None:
        """Run a request so that `cancellation` can end it."""
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
        self, graph: GraphInfo, path: Path, compiled: CompiledGraph, caches: CacheUse, backend: OpenVinoBackend
    ) -> None:
        self.name, self._path = graph.name, path
        held = {name: tensor for tensor in compiled.inputs for name in tensor.get_names()}
        self.inputs = {tensor.name: _as_held(tensor, held, caches) for tensor in graph.inputs}
        self.outputs = {tensor.name: _as_held(tensor, held, caches) for tensor in graph.outputs}
        self.caches, self.backend = caches, backend
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
            raise _loading_error(self._path, error) from error


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
        backend = runner.backend
        self._watch = SignalWatch(backend.cancellation.cancel, backend.cancellation.reset)

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
                self._runner.backend.infer(request)
        except Exception as error:  # OpenVINO's exceptions have no common base except RuntimeError
            held.bound = None
            raise self._failure(error) from error
        if self._runner.backend.cancellation.wished or self._watch.ended:
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
                    f"the {self._runner.name} graph failed in {_LIBRARY}: {self._new_rows} rows at {start} are outside "
                    f"of caches of {self._length} rows; export the bundle again"
                )
        if self._table is not None:
            self._table[PageTable.PAST][:] = starts
            self._table[PageTable.LONGEST][()] = max(starts) + self._new_rows

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"the {self._runner.name} graph was cancelled before it finished; ask again")

    def _failure(self, error: Exception) -> SdrpnError:
        """The error of a failed run. Names, types and shapes were checked before: the cause is memory, or the graph."""
        if self._runner.backend.cancellation.wished or self._watch.ended:
            return self._cancelled()
        reason = f"the {self._runner.name} graph failed in {_LIBRARY}: {_first_line(error)}"
        if _OF_THE_MACHINE.search(str(error)):
            return RunFailed(reason)
        return BadBundle(f"{reason}; export the bundle again")


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


def _require_declared(path: Path, graph: GraphInfo, model: openvino.Model, caches: CacheUse) -> None:
    """Check the graph's inputs and outputs against the manifest: names, ranks and fixed dims."""
    own = {value for name, value in vars(PageTable).items() if name.isupper()}
    unused = {"row_index", "write_index", "last_index"}  # what a paged attention takes in their place is computed here
    gone = {tensor.name for tensor in graph.outputs if tensor.of in caches.paged}
    for side, declared, found in (
        ("inputs", graph.inputs, model.inputs),
        ("outputs", graph.outputs, model.outputs),
    ):
        ours = {tensor.name: tensor.dims for tensor in declared if tensor.name not in gone}
        theirs = {_name(port, ours): port.get_partial_shape() for port in found}
        theirs = {name: shape for name, shape in theirs.items() if name not in own}
        strange = (theirs.keys() - ours.keys()) | (ours.keys() - theirs.keys() - unused)
        if strange:
            names = ", ".join(sorted(strange))
            raise BadBundle(f"{path} and the manifest differ in {side}: {names}; export the bundle again")
        for name, shape in theirs.items():
            if name in caches.paged or name in caches.returned.values():
                continue
            dims = ours[name]
            if len(dims) != len(shape) or any(
                isinstance(dim, int) and other.is_static and dim != other.get_length()
                for dim, other in zip(dims, shape, strict=False)
            ):
                raise BadBundle(f"{path} has {name} as {shape}, the manifest as {dims}; export the bundle again")


def _name(port: Any, declared: Container[str]) -> str:
    """Its declared name: compiling may add the names of values that became the same."""
    names: list[str] = sorted(port.get_names())
    return next((name for name in names if name in declared), names[0])


def _loading_error(path: Path, error: Exception) -> SdrpnError:
    reason = f"{_LIBRARY} cannot load {path}: {_first_line(error)}"
    of_the_machine = isinstance(error, MemoryError) or _OF_THE_MACHINE.search(str(error))
    return RunFailed(reason) if of_the_machine else BadBundle(f"{reason}; export the bundle again")


def _first_line(error: BaseException) -> str:
    """The last line of OpenVINO's trace that says something: those above it name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0]
