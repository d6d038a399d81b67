"""TensorRT and TensorRT-RTX on top of the fake CUDA: engines are Python functions over addresses.

Only what the real bindings have is here, under their names, so a call of anything else fails. Every execution is
recorded with its profile, shapes, addresses and the memory that it worked in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from sdrpn.bundle import GraphInfo
from sdrpn.engine_manifest import EngineManifest
from sdrpn.runtime.runner import Array, nbytes
from tests.runtime.fake_cuda import FakeCudart

__all__ = ["Compute", "Execution", "FakeTensorRt"]

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
        self.refusals: set[str] = set()  # calls that say no
        self.reads: list[int] = []  # pieces in which engines were read
        self.caches: list[FakeCache] = []
        self.contexts = 0
        if version.startswith("10.3"):
            self.IStreamReader = StreamReader
        else:
            self.IStreamReaderV2 = StreamReader
            self.SeekPosition = SeekPosition
        if flavour == "tensorrt-rtx":
            self.CudaGraphStrategy = CudaGraphStrategy

    def Runtime(self, log: Any) -> FakeRuntime:  # noqa: N802
        return FakeRuntime(self, log)

    def says_no(self, call: str, log: Any) -> bool:
        if call in self.refusals:
            log.log(Severity.ERROR, f"{call} is not wanted here")
        return call in self.refusals


class FakeRuntime:
    def __init__(self, trt: FakeTensorRt, log: Any) -> None:
        self._trt, self._log = trt, log

    def deserialize_cuda_engine(self, reader: Any) -> FakeEngine | None:
        if self._trt.says_no("deserialize_cuda_engine", self._log):
            return None
        content = self._all_at_once(reader) if hasattr(self._trt, "IStreamReader") else self._in_pieces(reader)
        return FakeEngine(self._trt, self._log, content.decode().removeprefix("engine of "))

    def _all_at_once(self, reader: Any) -> bytes:
        content = bytes(reader.read(1 << 20))
        self._trt.reads.append(len(content))
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
    def __init__(self, trt: FakeTensorRt, log: Any, graph: str) -> None:
        self.trt, self.log, self.info = trt, log, trt.graphs[graph]
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
        if self.trt.says_no("create_execution_context", self.log):
            return None
        config = how if isinstance(how, FakeConfig) else None
        strategy = config.strategy if config is not None else how
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        assert (config is not None) == (self.trt.flavour == "tensorrt-rtx")
        return FakeContext(self, config)


class FakeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content + b"compiled "


class FakeConfig:
    """IRuntimeConfig of TensorRT-RTX."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self.strategy: Any = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: FakeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeCache:
        self._trt.caches.append(FakeCache())
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

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self._trt.says_no("set_optimization_profile_async", self._engine.log):
            return False
        self._profile = profile
        return True

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert pointer % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._memory = (pointer, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._trt.says_no("set_input_shape", self._engine.log):
            return False
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), (name, shape)
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        if self._trt.says_no("set_tensor_address", self._engine.log):
            return False
        self._addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self._trt.says_no("execute_async_v3", self._engine.log):
            return False
        info, symbols = self._engine.info, dict[str, int]()
        for tensor in info.inputs:
            for dim, extent in zip(tensor.dims, self._shapes[tensor.name], strict=True):
                if isinstance(dim, str):
                    assert symbols.setdefault(dim, extent) == extent, (tensor.name, symbols)
        places = {
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
        self._record()
        memory = self._memory
        touches = [(a, nbytes(shape, dtype)) for side in places.values() for a, shape, dtype in side.values()]
        self._trt.cuda.enqueue(info.name, lambda: self._run(places, memory), memory, *touches)
        return True

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

    def _run(self, places: Mapping[str, Mapping[str, Any]], memory: tuple[int, int]) -> None:
        ctypes.memset(memory[0], 0xCD, memory[1])  # whatever else lay there is spoilt
        arrays = {side: {n: _array(*place) for n, place in side_places.items()} for side, side_places in places.items()}
        self._trt.compute(self._engine.info.name, arrays["inputs"], arrays["outputs"])


def _array(address: int, shape: tuple[int, ...], dtype: str) -> Array:
    interface = {"shape": shape, "typestr": np.dtype(dtype).str, "data": (address, False), "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))
