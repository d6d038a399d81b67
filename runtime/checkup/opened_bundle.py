"""A bundle on the backend that would run it on this machine. See `BundleOnDevice`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdrpn.bundle.bundle import Variant, open_bundle
from sdrpn.bundle.engine_manifest import ParityGate
from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.memory import graph_weights_bytes
from sdrpn.bundle.shipped import bundle_title
from sdrpn.host.machine import read_machine
from sdrpn.method.spec import ModelSpec
from sdrpn.reports.device_report import Subject
from sdrpn.runtime.backends import AUTOMATIC, open_backend, open_tensorrt
from sdrpn.runtime.backends.onnxruntime_info import CPU
from sdrpn.runtime.backends.tensorrt import EngineOptions
from sdrpn.runtime.checkup.steps import Skip
from sdrpn.runtime.engines.platform import read_platform
from sdrpn.runtime.engines.trial_run import smoke_test, smoke_test_graphs
from sdrpn.runtime.select import choose_backend, graph_variant
from sdrpn.runtime.session import Session

__all__ = ["OpenedBundle"]

# ONNX Runtime maps weights and also keeps packed copies of them.
_HOST_PER_WEIGHT_BYTE = 3


class OpenedBundle:
    """Chooses the backend of a bundle once, and opens sessions of it."""

    def __init__(
        self,
        path: Path | str,
        *,
        backend: str = AUTOMATIC,
        target: str | None = None,
        gpu: int = 0,
        parts: Parts = "all",
        threads: int | None = None,
    ) -> None:
        """Raises BadBundle, BadInput, EngineMismatch or MissingDependency, as `Session.open` does."""
        self._bundle, self._gpu, self._parts, self._threads = open_bundle(path), gpu, parts, threads
        self._choice = choose_backend(self._bundle, backend, target=target, device=gpu, parts=parts)
        engines, note = self._choice.engines, self._choice.note
        variant = (
            engines.variant if engines is not None else graph_variant(self._bundle, info=self._choice.info, note=note)
        )
        self.spec: ModelSpec = self._bundle.spec
        self._variant = variant.with_graphs(graph.name for graph in graphs_of(self.spec, parts))
        self.numerics = self._variant.numerics
        self.subject = Subject(
            bundle_title(self._bundle.path),
            self._variant.name,
            self._choice.backend,
            engines.target if engines is not None else None,
            self._choice.info.on,
        )

    @property
    def note(self) -> str | None:
        """Why existing engines are not used, or None."""
        return self._choice.note

    def open(self, *, cuda_graph: bool = True) -> Session:
        """See `BundleOnDevice`."""
        engines = self._choice.engines
        return Session.open(
            self._bundle.path,
            backend=self._choice.backend,
            target=self.subject.target,
            variant=self._variant.name,
            device=self._gpu if self._choice.info.on == "gpu" else None,
            engine_options=EngineOptions(cuda_graph=cuda_graph) if engines is not None else None,
            optimized=False,
            verify=False,
            parts=self._parts,
            threads=self._threads,
        )

    def open_reference(self) -> Session | None:
        """See `BundleOnDevice`."""
        if self._bundle.release_targets:  # engines without graphs to compare with
            return None
        if self._choice.info is CPU:
            reference = self._twin()
        else:
            reference = None if self._variant.for_engines_only else self._variant
        if reference is None:
            return None
        return Session.open(
            self._bundle.path,
            backend=CPU.name,
            variant=reference.name,
            optimized=False,
            verify=False,
            parts=self._parts,
            threads=self._threads,
        )

    def _twin(self, dialect: str | None = None) -> Variant | None:
        """Another variant that should compute the same numbers; in the same dialect, inputs and outputs are equal."""
        for variant in self._bundle.manifest.variants.values():
            same = variant.numerics == self.numerics and dialect in (None, variant.dialect)
            if same and variant.name != self._variant.name and not variant.for_engines_only:
                return variant
        return None

    def gates(self) -> Iterator[ParityGate]:
        """See `BundleOnDevice`."""
        engines = self._choice.engines
        if self._choice.info is CPU:
            return smoke_test_graphs(
                self._bundle, self._variant, self._twin(self._variant.dialect), open_backend(CPU.name)
            )
        if engines is None:
            raise Skip("graphs are compared one by one only for engines, and on the CPU")
        options = EngineOptions(device=self._gpu)
        gpu = open_tensorrt(engines.flavour, options, host_code=engines.host_code)
        compares = not (self._variant.for_engines_only or self._bundle.release_targets) and self._fits_host()
        return smoke_test(engines, gpu, open_backend(CPU.name) if compares else None)

    def _fits_host(self) -> bool:
        available = read_machine().memory_available_bytes
        largest = max(graph_weights_bytes(self._bundle, self._variant).values())
        return available is None or _HOST_PER_WEIGHT_BYTE * largest <= available

    def free_bytes(self) -> int | None:
        """See `BundleOnDevice`."""
        if self._choice.info is CPU:
            return read_machine().memory_available_bytes
        gpu = read_platform(self._gpu).gpu
        return gpu.memory_free_bytes if gpu is not None else None
