"""TensorRT and TensorRT-RTX on top of the fake CUDA: engines are Python functions over addresses.

Only what the real bindings have is here, under their names, so a call of anything else fails. It refuses what the
libraries refuse: addresses that are null, not aligned or of the host, an output that shares no memory with the input it
updates, changes of shapes, profile or memory inside a capture, and the first run after such a change. Every execution
is recorded with its profile, shapes, addresses and the memory that it worked in.
"""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.bundle.engine_manifest import EngineManifest
from sdrpn.runtime.backends.runner import Array, nbytes
from tests.runtime.fake_cuda import FakeCudart

__all__ = ["Compute", "Execution", "FakeTensorRt"]

_ALIGNMENT = 256  # of tensors' addresses: setTensorAddress of NvInferRuntime.h

# (graph, inputs by name, outputs by name): writes the outputs, in place.
Compute = Callable[[str, Mapping[str, Array], Mapping[str, Array]], None]


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT64 = "int64"
    INT8 = "int8"
    FP8 = "float8_e4m3fn"


class SeekPosition(Enum):
    SET = 0
    CUR = 1
    END = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    ERROR, INFO = Severity.ERROR, Severity.INFO

    def __init__(self) -> None:
        """The bindings want it called."""


class StreamReader:
    def __init__(self) -> None:
        """The bindings want it called."""


@dataclass(frozen=True)
class Execution:
    """One run of one engine, as it was enqueued or captured."""

    graph: str
    profile: int
    own_graph: bool  # TensorRT-RTX captures it
    shapes: Mapping[str, tuple[int, ...]]
    addresses: Mapping[str, int]
    memory: tuple[int, int]
    context: int


class FakeTensorRt:
    """In place of the module `tensorrt` or `tensorrt_rtx`."""

    ILogger = ILogger
    TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    ExecutionContextAllocationStrategy = Enum(
        "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
    )

    def __init__(
        self,
        flavour: str,
        cuda: FakeCudart,
        graphs: Mapping[str, GraphInfo],
        manifests: Mapping[str, EngineManifest],
        compute: Compute,
        *,
        version: str = "10.16.1.11",
        streamable_bytes: int = 0,
    ) -> None:
        self.__version__ = version
        self.flavour, self.cuda, self.graphs, self.manifests = flavour, cuda, graphs, manifests
        self.compute = compute
        self.streamable_bytes = streamable_bytes
        self.executions: list[Execution] = []
        self.refusals: set[str] = set()  # calls that fail
        self.capturable = True  # False: runs inside a capture are refused
        self.reads: list[int] = []  # pieces in which engines were read
        self.caches: list[FakeCache] = []
        self.compilations: list[str] = []  # of kernels, by TensorRT-RTX at run time
        self.background_compilations = 0  # of those, in threads of its own, which swap kernels in later
        self.contexts = 0
        self._logger: weakref.ref[Any] | None = None  # one for the process: the first that it was given
        if version.startswith("10.3"):
            self.IStreamReader = StreamReader
        else:
            self.IStreamReaderV2 = StreamReader
            self.SeekPosition = SeekPosition
        if flavour == "tensorrt-rtx":
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def Runtime(self, log: Any) -> FakeRuntime:  # noqa: N802
        if self._logger is None:
            self._logger = weakref.ref(log)
        elif self._logger() is not log:
            self.log(Severity.WARNING, "a logger was given before; the current new logger is ignored")
        return FakeRuntime(self)

    def log(self, severity: Severity, message: str) -> None:
        """Through the first logger, which the library has only a pointer to."""
        logger = self._logger() if self._logger is not None else None
        if logger is None:
            self.cuda.violations.append("a message goes to a logger that is gone")
        else:
            logger.log(severity, message)

    def refuse(self, message: str) -> bool:
        """The library's error messages."""
        self.log(Severity.ERROR, message)
        return False

    def says_no(self, call: str) -> bool:
        if call in self.refusals:
            self.refuse(f"{call} is not wanted here")
        return call in self.refusals


class FakeRuntime:
    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, reader: Any) -> FakeEngine | None:
        if self._trt.says_no("deserialize_cuda_engine"):
            return None
        content = self._all_at_once(reader) if hasattr(self._trt, "IStreamReader") else self._in_pieces(reader)
        return FakeEngine(self._trt, content.decode().removeprefix("engine of "))

    def _all_at_once(self, reader: Any) -> bytes:
        """10.3 asks for the rest of the file in one call, and copies as many bytes from what it is given."""
        content = bytes(reader.read(max(manifest.engine.size_bytes for manifest in self._trt.manifests.values())))
        self._trt.reads.append(len(content))
        assert content.decode().removeprefix("engine of ") in self._trt.manifests, "read past the end of a buffer"
        return content

    def _in_pieces(self, reader: Any) -> bytes:
        """A header of four bytes, back to the beginning, and the rest."""
        positions = self._trt.SeekPosition
        header = reader.read(4, 0)
        assert reader.seek(0, positions.SET)
        pieces = [reader.read(1 << 30, 0)]
        while pieces[-1]:
            pieces.append(reader.read(1 << 30, 0))
        self._trt.reads += [len(piece) for piece in pieces[:-1]]
        assert header == pieces[0][:4]
        return b"".join(pieces)


class FakeEngine:
    def __init__(self, trt: FakeTensorRt, graph: str) -> None:
        self.trt, self.info = trt, trt.graphs[graph]
        self.device = trt.cuda.current
        trt.cuda.initialised.add(self.device)
        self.manifest = trt.manifests[graph]
        self._tensors = {tensor.name: tensor for tensor in self.manifest.tensors}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(self.manifest.profiles)
        self.device_memory_size_v2 = self.manifest.activation_bytes or 0
        self.streamable_weights_size = trt.streamable_bytes
        self.weight_streaming_budget_v2 = 0
        if int(trt.__version__.partition(".")[0]) >= 11 or trt.__version__.startswith(("10.16", "1.")):
            self.get_aliased_input_tensor = self._aliased
        if trt.flavour == "tensorrt-rtx":
            self.create_runtime_config = lambda: FakeConfig(trt)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode[self._tensors[name].mode.upper()]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].dims

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return list(self._tensors[name].profiles[profile])

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.trt.streamable_bytes // 2

    def _aliased(self, name: str) -> str | None:
        return name.removesuffix("_out") if name.endswith("_out") else None

    def create_execution_context(self, how: Any) -> FakeContext | None:
        if self.trt.says_no("create_execution_context"):
            return None
        if self.trt.cuda.current != self.device:
            self.trt.cuda.violations.append(
                f"a context of an engine on device {self.device} is made on device {self.trt.cuda.current}"
            )
        config = how if isinstance(how, FakeConfig) else None
        strategy = config.strategy if config is not None else how
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        assert (config is not None) == (self.trt.flavour == "tensorrt-rtx")
        return FakeContext(self, config)


class FakeCache:
    """What was compiled, for engines of one release."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.kernels: set[str] = set()

    def deserialize(self, content: bytes) -> bool:
        try:
            found = json.loads(content)
        except ValueError:
            return False
        if found["version"] != self.version:
            return False
        self.kernels = set(found["kernels"])
        return True

    def serialize(self) -> bytes:
        return json.dumps({"version": self.version, "kernels": sorted(self.kernels)}).encode()


class FakeConfig:
    """IRuntimeConfig of TensorRT-RTX."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self.strategy: Any = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache = FakeCache(trt.__version__)  # of a context that is given none: its own

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeCache:
        self._trt.caches.append(FakeCache(self._trt.__version__))
        return self._trt.caches[-1]

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        if "set_runtime_cache" in self._trt.refusals:
            return False
        self.cache = cache
        return True


class FakeContext:
    def __init__(self, engine: FakeEngine, config: FakeConfig | None) -> None:
        self._engine, self._config = engine, config
        self._trt = engine.trt
        self._trt.contexts += 1
        self._number = self._trt.contexts
        self._profile = -1
        self._memory = (0, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._settled = False  # nothing changed since it last ran that it would have to prepare for

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self._trt.says_no("set_optimization_profile_async") or not self._may_change("the profile"):
            return False
        self._profile, self._settled = profile, False
        return True

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert pointer % _ALIGNMENT == 0
        assert size >= self._engine.device_memory_size_v2
        self._may_change("the working memory")
        self._memory, self._settled = (pointer, size), False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._trt.says_no("set_input_shape"):
            return False
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), (name, shape)
        if self._shapes.get(name) != shape:
            if not self._may_change(f"the shape of {name}"):
                return False
            self._shapes[name], self._settled = shape, False
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        if self._trt.says_no("set_tensor_address"):
            return False
        if pointer == 0 or pointer % _ALIGNMENT:
            return self._trt.refuse(f"{name}: address {pointer:#x} is not aligned to {_ALIGNMENT} bytes, or null")
        if self._trt.cuda.place_of(pointer) is None:
            return self._trt.refuse(f"{name}: address {pointer:#x} is not accessible from the device")
        self._addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._trt.says_no("execute_async_v3"):
            return False
        capture = self._trt.cuda.capture
        if capture is not None and not (self._settled and self._trt.capturable):
            capture.spoilt = True
            return self._trt.refuse("the first run after a change, or one that waits, cannot be captured")
        if self._trt.cuda.current != self._engine.device:
            self._trt.cuda.violations.append(f"an engine of device {self._engine.device} is run on another one")
        self._settled = True
        places = self._places()
        for name, (address, _, _) in places["outputs"].items():
            wanted = self._engine._aliased(name)
            if wanted in places["inputs"] and places["inputs"][wanted][0] != address:
                return self._trt.refuse(f"{name} must have the address of {wanted}")
        self._record()
        memory, exact = self._memory, self._specialised()
        ranges = {
            side: tuple((a, nbytes(shape, dtype)) for a, shape, dtype in some.values()) for side, some in places.items()
        }
        self._trt.cuda.launch(
            stream,
            self._engine.info.name,
            lambda: self._run(places, memory, exact),
            ranges["inputs"],
            (memory, *ranges["outputs"]),
        )
        return True

    def _may_change(self, what: str) -> bool:
        capture = self._trt.cuda.capture
        if capture is not None:
            capture.spoilt = True
            self._trt.refuse(f"{what} cannot be changed inside a capture")
        return capture is None

    def _places(self) -> dict[str, dict[str, tuple[int, tuple[int, ...], str]]]:
        """Address, shape and type of every input and output."""
        info, symbols = self._engine.info, dict[str, int]()
        for tensor in info.inputs:
            for dim, extent in zip(tensor.dims, self._shapes[tensor.name], strict=True):
                if isinstance(dim, str):
                    assert symbols.setdefault(dim, extent) == extent, (tensor.name, symbols)
        return {
            side: {
                tensor.name: (
                    self._addresses[tensor.name],
                    tuple(symbols[dim] if isinstance(dim, str) else dim for dim in tensor.dims),
                    tensor.storage,
                )
                for tensor in tensors
            }
            for side, tensors in (("inputs", info.inputs), ("outputs", info.outputs))
        }

    def _specialised(self) -> bool:
        """Whether kernels for exactly these shapes run: other ones round otherwise. Compiles what is missing."""
        if self._config is None:
            return True
        strategy = self._config.dynamic_shapes_kernel_specialization_strategy.name
        name = f"{self._engine.info.name}, profile {self._profile}"
        special = f"{name}, {sorted(self._shapes.items())}"
        known = special in self._config.cache.kernels
        if strategy != "EAGER":
            self._compile(name)
        if strategy != "NONE":
            self._compile(special)
        if strategy == "LAZY" and not known:
            self._trt.background_compilations += 1
            return False
        return strategy != "NONE"

    def _compile(self, kernels: str) -> None:
        assert self._config is not None
        if kernels not in self._config.cache.kernels:
            self._config.cache.kernels.add(kernels)
            self._trt.compilations.append(kernels)

    def _record(self) -> None:
        own = self._config is not None and self._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
        self._trt.executions.append(
            Execution(
                self._engine.info.name,
                self._profile,
                own,
                dict(self._shapes),
                dict(self._addresses),
                self._memory,
                self._number,
            )
        )

    def _run(self, places: Mapping[str, Mapping[str, Any]], memory: tuple[int, int], exact: bool) -> None:
        ctypes.memset(memory[0], 0xFF, memory[1])  # whatever else lay there is spoilt
        arrays = {side: {n: _array(*place) for n, place in side_places.items()} for side, side_places in places.items()}
        self._trt.compute(self._engine.info.name, arrays["inputs"], arrays["outputs"])
        for name, array in arrays["outputs"].items():
            if not exact and array.dtype.kind == "f" and not name.endswith("_out"):
                array[...] = np.nextafter(array, np.array(np.inf, array.dtype))


def _array(address: int, shape: tuple[int, ...], dtype: str) -> Array:
    interface = {"shape": shape, "typestr": np.dtype(dtype).str, "data": (address, False), "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))
