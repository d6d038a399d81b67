"""OpenVINO: the bundle's own graphs, converted as they are loaded, on a CPU with caches in pages that it updates."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, Literal

import openvino

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.errors import BadBundle, BadInput, SdrpnError
from sdrpn.host.freed_memory import drop_file_pages, trim_heap
from sdrpn.host.interrupt import signals_held
from sdrpn.host.machine import read_available_memory, read_cpu
from sdrpn.host.native_modules import native_module
from sdrpn.host.signal_stack import signal_stack_kept
from sdrpn.host.threads import choose_threads
from sdrpn.runtime.backends.arrays import run_on_arrays, trial_feeds
from sdrpn.runtime.backends.external_data import graph_with_real_files, require_files
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.openvino_compiled import CompiledGraph
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
from sdrpn.runtime.backends.openvino_runner import LIBRARY, SAVED_SUFFIX, Inference, OpenVinoRunner, loading_error
from sdrpn.runtime.backends.openvino_steps import constant_products
from sdrpn.runtime.backends.paged_buffer import PagedBuffer
from sdrpn.runtime.backends.runner import Buffer, Step, in_order, store_in_order

__all__ = ["OpenVinoBackend"]

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
        Raises: BadInput for threads out of range, a device that is not here, a type that it cannot compute in, an
            option that it does not have, or a copy of the matrices for decode steps that nothing would read
        """
        self._accurate, self._activation_block, self._kv_cache = accurate, activation_block, kv_cache
        self._decode_copy, self._vision_type = decode_copy, vision_type
        self._core = new_core()
        with signal_stack_kept():  # the device's library is loaded here
            self.device: OpenVinoDevice = device_named(self._core, device)
        self.device.require_options(kv_cache=kv_cache, activation_block=activation_block, accurate=accurate)
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
        self._inference = Inference()
        self.cancellation = self._inference.cancellation

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
        if path.suffix == SAVED_SUFFIX:
            return self._loaded(graph, path, [path.with_suffix(".bin")], lambda: self._core.read_model(path))
        content = path.read_bytes()
        require_files(path, content, graph.weights, LIBRARY)
        if graph_with_real_files(content, path.parent) is not None:
            return self.load_content(graph, content, path)
        weights = [path.parent / file for file in graph.weights]
        return self._loaded(graph, path, weights, lambda: self._core.read_model(path))

    def load_content(self, graph: GraphInfo, content: bytes, path: Path) -> OpenVinoRunner:
        """As `load`, for what `path` would contain, in the folder that its weights' paths are relative to."""
        require_files(path, content, graph.weights, LIBRARY)
        weights = [path.parent / file for file in graph.weights]
        return self._loaded(graph, path, weights, lambda: read_onnx(self._core, content, path.parent))

    def _loaded(
        self, graph: GraphInfo, path: Path, weights: Sequence[Path], read: Callable[[], openvino.Model]
    ) -> OpenVinoRunner:
        try:
            with signals_held():  # the library calls us back while it reads a graph, and drops what is raised there
                model = read()
            caches = use_pages(model, graph.name) if self.device.paged else return_rows(model)
            options = self._options(graph, code_block(model))
            compiled = CompiledGraph(self._core, model, graph, self.device, options)
        except SdrpnError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and its subclasses, and Python's own of a bad file
            raise loading_error(path, error) from error
        _require_declared(path, graph, compiled.model, caches)
        runner = OpenVinoRunner(graph, path, compiled, caches, self._inference)
        if self.device.paged and sum(file.stat().st_size for file in weights) >= _LARGE_BYTES:
            # Kernels pack matrices when they first run: now, before other graphs and caches are in memory.
            run_on_arrays(self, runner, trial_feeds(runner.inputs.values()))
        try:
            self._add_steps(graph, compiled)
        except Exception as error:  # as above; and memory that is not there, of the native module
            raise loading_error(path, error) from error
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
        elif self._decode_copy and not products:
            self.note = (
                f"{f'{self.note}; ' if self.note else ''}decode_copy has no effect on the {graph.name} graph: some of "
                "its matrices are neither in 4 or 8 bits nor in float16"
            )

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
