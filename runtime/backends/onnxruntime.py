"""ONNX Runtime on a CPU, and on NVIDIA GPUs through CUDA (CUDA-specific parts are in `onnxruntime_cuda.py`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from sdrpn.bundle.bundle import GraphInfo, TensorInfo
from sdrpn.bundle.memory import CPU_PREFILL_ROWS
from sdrpn.errors import BadBundle, Cancelled, MissingDependency, RunFailed, SdrpnError
from sdrpn.host.freed_memory import trim_heap
from sdrpn.host.interrupt import Cancellation, SignalWatch
from sdrpn.host.machine import read_available_memory
from sdrpn.host.threads import CpuThreads, choose_threads
from sdrpn.runtime.backends.external_data import graph_with_real_files, require_files
from sdrpn.runtime.backends.failures import first_line, graph_error
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.onnxruntime_cuda import DeviceBuffer, prepare_cuda, record_placement, require_cuda
from sdrpn.runtime.backends.runner import Buffer, Step, check_bindings, in_order, store_in_order

__all__ = ["PROVIDERS", "WEIGHTS_FOLDER", "OnnxRuntimeBackend", "load_session", "session_options"]

# --backend name -> (execution provider, device of its buffers)
PROVIDERS = {
    "onnxruntime": ("CPUExecutionProvider", "cpu"),
    "onnxruntime-cuda": ("CUDAExecutionProvider", "cuda"),
}
# Option: the folder that weight file names are relative to, for a graph loaded from memory.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# TensorProto's numbers for types that NumPy lacks.
_ELEMENT_TYPES = {"float8_e4m3fn": 17}


class OnnxRuntimeBackend:
    """Allocates buffers on the provider's device and loads graphs with its options."""

    def __init__(
        self,
        name: str = "onnxruntime",
        threads: int | None = None,
        device_id: int = 0,
        *,
        optimized: bool = False,
        largest_matrix: int | None = None,
        accurate: bool = False,
    ) -> None:
        """Choose the threads, and find the provider.

        Args:
            threads, largest_matrix: see `sdrpn.host.threads.choose_threads`
            optimized: the graphs were saved by this library after optimisation; do not optimise them again
            accurate: see `OpenOptions`
        Raises: MissingDependency where this build lacks the provider, BadInput for threads out of range
        """
        provider, self._device = PROVIDERS[name]
        self.name = name
        self.on: Literal["cpu", "gpu"] = "cpu" if self._device == "cpu" else "gpu"
        self.note: str | None = None
        self._device_id = device_id
        if provider not in onnxruntime.get_available_providers():
            raise MissingDependency(
                f"backend {name} needs ONNX Runtime's {provider}, which is not available in this build; install it: "
                f"pip uninstall onnxruntime && pip install 'sdrpn[cuda]'"
            )
        if self._device == "cuda":
            prepare_cuda()
        self._providers = [(provider, {"device_id": str(device_id)} if self._device == "cuda" else {})]
        self.threads = choose_threads(threads, largest_matrix)
        self._run_options = onnxruntime.RunOptions()
        # The library's Python code looks up this entry at every run, and its absence costs 40 us.
        self._run_options.add_run_config_entry("gpu_graph_id", "-1")  # no graph capture, which is the default
        self.cancellation = Cancellation(self._set_terminate)
        self._optimized, self._accurate = optimized, accurate
        # Activations of a long prompt exceed the processor's caches, and attention over the first rows does not need
        # the last ones: 640 rows in parts took 10 % less processor time than at once.
        self.prefill_rows = CPU_PREFILL_ROWS if self._device == "cpu" else None
        # The standard attention masks what is not in use; saved graphs have another operator.
        self.reads_whole_caches = self._device == "cpu" and not optimized
        self.most_slots: int | None = None

    def free_memory(self) -> int | None:
        """See `Backend.free_memory`; of a GPU the library does not say it."""
        return read_available_memory() if self.on == "cpu" else None

    def allocate(
        self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False, for_cache: bool = False
    ) -> Buffer:
        """Allocate zeros on the provider's device."""
        if self._device == "cpu":
            return HostBuffer.zeros(shape, dtype)
        return DeviceBuffer.zeros(shape, dtype, self._device, self._device_id)

    def load(self, graph: GraphInfo, path: Path) -> OnnxRuntimeRunner:
        """Load `path`; weights are mapped from its external files.

        Raises:
            BadBundle: the library refuses the graph, or it does not match `graph`
            RunFailed: not enough memory
        """
        options = session_options(self.threads, accurate=self._accurate)
        if self._device == "cuda":
            record_placement(options)
        if self._optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = load_session(
            _source(path, graph.weights, options), str(path), options, self._providers, saved=self._optimized
        )
        trim_heap()
        _require_declared(path, graph, session)
        if self._device == "cuda":
            require_cuda(session, graph.name)
        return self.runner(graph, session)

    def runner(self, graph: GraphInfo, session: onnxruntime.InferenceSession) -> OnnxRuntimeRunner:
        """A runner for a session created with the backend's provider."""
        return OnnxRuntimeRunner(graph, session, self._device, self._device_id, self._run_options, self.cancellation)

    def store_rows(self, caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
        """See `Backend.store_rows`."""
        return store_in_order(caches, rows, start)

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """See `Backend.chain`."""
        return in_order(steps)

    def _set_terminate(self, wished: bool) -> None:
        self._run_options.terminate = wished


class OnnxRuntimeRunner:
    """A graph in an ONNX Runtime session, used only through bindings."""

    def __init__(
        self,
        graph: GraphInfo,
        session: onnxruntime.InferenceSession,
        device: str,
        device_id: int,
        options: onnxruntime.RunOptions,
        cancellation: Cancellation,
    ) -> None:
        """Args: options: for every run; `cancellation` sets its `terminate`"""
        self.name = graph.name
        self.inputs = {tensor.name: tensor for tensor in graph.inputs}
        self.outputs = {tensor.name: tensor for tensor in graph.outputs}
        self._session: onnxruntime.InferenceSession | None = session
        self._device, self._device_id = device, device_id
        self._options, self._cancellation = options, cancellation

    def bind(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Callable[[], None]:
        """See `Runner.bind`."""
        symbols: dict[str, int] = {}
        check_bindings(self.name, "inputs", self.inputs, feeds, symbols)
        check_bindings(self.name, "outputs", self.outputs, results, symbols)
        binding = self._open_session().io_binding()
        for name, buffer in feeds.items():
            binding.bind_input(name, *self._place(self.inputs[name], buffer))
        for name, buffer in results.items():
            binding.bind_output(name, *self._place(self.outputs[name], buffer))
        run = functools.partial(self._open_session().run_with_iobinding, binding, self._options)
        return _BoundStep(self.name, run, (dict(feeds), dict(results)), self._cancellation)

    def run(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        """See `Runner.run`."""
        self.bind(feeds, results)()

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def _open_session(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise RunFailed(f"the {self.name} graph was closed; open the session again")
        return self._session

    def _place(self, tensor: TensorInfo, buffer: Buffer) -> tuple[str, int, Any, tuple[int, ...], int]:
        assert isinstance(buffer, (HostBuffer, DeviceBuffer))
        element_type = _ELEMENT_TYPES.get(tensor.dtype, buffer.dtype)
        return self._device, self._device_id, element_type, buffer.shape, buffer.pointer


class _BoundStep:
    """A run with bound buffers; keeps them alive, because the binding has only their addresses."""

    def __init__(self, name: str, run: Callable[[], None], buffers: object, cancellation: Cancellation) -> None:
        self._name, self._run, self._buffers = name, run, buffers
        self._cancellation = cancellation
        self._watch = SignalWatch(cancellation.cancel, cancellation.reset)

    def __call__(self) -> None:
        try:
            with self._watch:
                self._run()
        except Exception as error:  # ONNX Runtime's exceptions have no common base except Exception
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> SdrpnError:
        """The error of a failed run. Names, types and shapes were checked before: the cause is memory, or the graph."""
        if self._cancellation.wished or self._watch.ended:
            return Cancelled(f"the {self._name} graph was cancelled before it finished; ask again")
        return graph_error(f"the {self._name} graph failed in ONNX Runtime: {first_line(error)}", error)


def _source(path: Path, weights: Sequence[str], options: onnxruntime.SessionOptions) -> str | bytes:
    """The input of a session: the file, or the graph with links to weight files replaced by the real files.

    Args: weights: the only files that the graph's weights may be in: those that were verified
    """
    content = path.read_bytes()
    require_files(path, content, weights, f"ONNX Runtime {onnxruntime.__version__}")
    found = graph_with_real_files(content, path.parent)
    if found is None:
        return os.fspath(path)
    content, folder = found
    options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(folder))
    return content


def load_session(
    model: str | bytes,
    name: str,
    options: onnxruntime.SessionOptions,
    providers: Sequence[Any],
    *,
    saved: bool = False,
) -> onnxruntime.InferenceSession:
    """Create an ONNX Runtime session; a signal interrupts it.

    Args:
        model: path or content of the graph
        name: the name of the graph, for messages
        saved: it is one of `sdrpn optimize`
    Raises: BadBundle where the library refuses the graph, RunFailed where memory or disk space is exhausted
    """
    watch = SignalWatch(lambda: options.set_load_cancellation_flag(True))
    try:
        with watch:
            return onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions have no common base except Exception
        if watch.ended:
            raise Cancelled(f"{name} was not loaded: interrupted by a signal") from error
        reason = f"ONNX Runtime {onnxruntime.__version__} cannot load {name}: {first_line(error)}"
        raise graph_error(reason, error, saved=saved) from error


def _require_declared(path: Path, graph: GraphInfo, session: onnxruntime.InferenceSession) -> None:
    """Check the graph's inputs and outputs against the manifest: names, ranks and fixed dims."""
    for side, declared, found in (
        ("inputs", graph.inputs, session.get_inputs()),
        ("outputs", graph.outputs, session.get_outputs()),
    ):
        ours, theirs = {tensor.name: tensor.dims for tensor in declared}, {node.name: node.shape for node in found}
        if ours.keys() != theirs.keys():
            names = ", ".join(sorted(ours.keys() ^ theirs.keys()))
            raise BadBundle(f"{path} and the manifest differ in {side}: {names}; export the bundle again")
        for name, dims in ours.items():
            if len(dims) != len(theirs[name]) or any(map(_unlike, dims, theirs[name])):
                raise BadBundle(
                    f"{path} has {name} as {tuple(theirs[name])}, the manifest as {dims}; export the bundle again"
                )


def _unlike(declared: int | str, found: int | str | None) -> bool:
    """Whether dims differ. Dynamic dims may have other names, and a saved graph may have fewer names."""
    return isinstance(declared, int) and isinstance(found, int) and declared != found


def session_options(threads: CpuThreads, *, accurate: bool = False) -> onnxruntime.SessionOptions:
    """The session options for every graph. `accurate`: see `OpenOptions`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.count
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # One arena for all graphs: with one arena each, every graph would keep the memory of its longest prompt.
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A head in fp16 of a large vocabulary is more than the gigabyte up to which it would become fp32 once and for all.
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(1 << 40))
    # Quantised matrices with 8-bit activations: about four times as fast as with floats, at an error of 4e-3 to 8e-3.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if accurate else "4")
    # Four sessions alternate: threads that spin after their graph has ended would take the cores from the next graph.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not threads.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@functools.cache
def _share_arena() -> None:
    """Register one CPU arena in this process that sessions can opt into; other sessions are not affected."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({}))
