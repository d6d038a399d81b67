"""Sessions on a GPU that is not there: engines are ONNX Runtime over the addresses that were bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.compare.simulation import runnable_bundle
from sdrpn.runtime import EngineOptions, Session, select
from sdrpn.runtime.backends import tensorrt_info
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from sdrpn.runtime.backends.runner import Array
from sdrpn.runtime.backends.tensorrt import TensorRtBackend
from sdrpn.runtime.backends.tensorrt_library import Library
from sdrpn.runtime.engines import preflight
from sdrpn.runtime.engines.engine_set import engine_set
from tests.damage import copied
from tests.runtime.engine_files import TARGET, platform, write_engines
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.fake_driver import FakeDriver
from tests.runtime.fake_tensorrt import Compute, FakeTensorRt

__all__ = ["FakeGpu", "bf16_compute", "fake_gpu", "onnxruntime_compute", "opening"]


@dataclass
class FakeGpu:
    """The fakes, and what runs on them."""

    bundle: Bundle
    variant: str
    cuda: FakeCudart
    trt: FakeTensorRt
    flavour: str
    driver: FakeDriver
    caches: Path  # of what TensorRT-RTX compiles, unless a test asks for another place

    def backend(self, options: EngineOptions | None = None) -> TensorRtBackend:
        options = options or EngineOptions()
        if options.runtime_cache_dir is None and options.keep_runtime_cache:
            options = dataclasses.replace(options, runtime_cache_dir=self.caches)
        return self._backend(options)

    def engine(self, graph: str) -> Path:
        return engine_set(self.bundle, TARGET).engines[graph].path

    def session(self, options: EngineOptions | None = None, max_batch: int = 1) -> Session:
        return self.session_of(self.backend(options), max_batch)

    def bare_session(self) -> Session:
        """Without any option: what TensorRT-RTX compiles goes where a user has it."""
        return self.session_of(self._backend(EngineOptions()))

    def _backend(self, options: EngineOptions) -> TensorRtBackend:
        cuda = Cuda(self.cuda, options.device, self.driver)
        return TensorRtBackend(Library(self.flavour, self.trt), cuda, options)

    def session_of(self, backend: TensorRtBackend, max_batch: int = 1) -> Session:
        engines = engine_set(self.bundle, TARGET)
        paths = {graph: engine.path for graph, engine in engines.engines.items()}
        variant = self.bundle.variant(self.variant)
        return Session(
            self.bundle,
            variant,
            backend,
            paths,
            contexts=engines.contexts,
            engine_batch=engines.max_batch,
            max_batch=max_batch,
        )

    def graphs(self) -> list[str]:
        """What was enqueued or captured, in order."""
        return [run.graph for run in self.trt.executions]


def onnxruntime_compute(bundle: Bundle, variant: str) -> Compute:
    """The bundle's own graphs, bound to the addresses of the fake device."""
    backend = OnnxRuntimeBackend(threads=1)
    graphs = bundle.variant(variant).graphs
    runners = {name: backend.load(graph, bundle.file(graph.file)) for name, graph in graphs.items()}

    def compute(graph: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        sides = ({name: HostBuffer(array) for name, array in side.items()} for side in (feeds, results))
        runners[graph].run(*sides)

    return compute


def bf16_compute(bundle: Bundle, variant: str) -> Compute:
    """Simulated graphs; caches are two bytes per element on the device, and float32 in ONNX Runtime."""
    with runnable_bundle(bundle, bundle.variant(variant)) as simulated:
        compute = onnxruntime_compute(simulated, variant)

    def bf16(graph: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        wide = [{name: as_float32(array) for name, array in side.items()} for side in (feeds, results)]
        compute(graph, wide[0], wide[1])
        for name, array in results.items():
            if array.dtype == np.uint16:
                array[...] = wide[1][name].astype(ml_dtypes.bfloat16).view(np.uint16)

    return bf16


def as_float32(array: Array) -> Array:
    return array.view(ml_dtypes.bfloat16).astype(np.float32) if array.dtype == np.uint16 else array


def fake_gpu(
    source: Path,
    folder: Path,
    *,
    variant: str = "fused-fp32",
    flavour: str = "tensorrt",
    integrated: bool = False,
    max_context: int = 128,
    max_batch: int = 2,
    shorter_contexts: tuple[int, ...] = (),
    compute: Compute | None = None,
    devices: int = 1,
    memory: int = 24_000_000_000,
    **trt: Any,
) -> FakeGpu:
    """A copy of a bundle with engines for it, on fakes."""
    bundle = open_bundle(copied(source, folder))
    write_engines(
        bundle,
        variant,
        flavour=flavour,
        max_context=max_context,
        max_batch=max_batch,
        shorter_contexts=shorter_contexts,
    )
    cuda = FakeCudart(integrated=integrated, devices=devices, memory=memory)
    library = FakeTensorRt(
        flavour,
        cuda,
        bundle.variant(variant).graphs,
        engine_set(bundle, TARGET).manifests,
        compute or onnxruntime_compute(bundle, variant),
        **trt,
    )
    return FakeGpu(bundle, variant, cuda, library, flavour, FakeDriver(cuda), bundle.path.with_name("compiled"))


def opening(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """`Session.open` of its bundle, on a machine that the engines fit."""

    class Silent:
        def validity(self, path: Path) -> None:
            return None

    monkeypatch.setattr(select, "read_platform", lambda device: platform("tensorrt"))
    monkeypatch.setattr(preflight, "open_library", lambda flavour: Silent())
    monkeypatch.setattr(tensorrt_info, "open_tensorrt", lambda flavour, options, host_code: gpu.backend(options))
    return lambda **options: Session.open(gpu.bundle.path, **options)
