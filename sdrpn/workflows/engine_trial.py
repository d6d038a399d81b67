"""Run each new engine once if this machine's GPU fits it, and keep only those that pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from sdrpn.bundle.bundle import Bundle
from sdrpn.bundle.engine_manifest import ParityGate, engine_paths, write_engine_manifest
from sdrpn.bundle.memory import graph_weights_bytes
from sdrpn.errors import RunFailed, SdrpnError
from sdrpn.host.machine import read_machine
from sdrpn.runtime import EngineOptions
from sdrpn.runtime.backends import open_backend, open_tensorrt
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.engines.engine_set import EngineSet, engine_set
from sdrpn.runtime.engines.platform import read_platform
from sdrpn.runtime.engines.preflight import check_engines
from sdrpn.runtime.engines.trial_run import smoke_test

__all__ = ["Trial", "try_engines"]

# ONNX Runtime maps weights and packs them into memory of its own; the interpreter and the library need some more.
_HOST_PER_WEIGHT_BYTE, _HOST_BASE_BYTES = 3, 500_000_000


@dataclass(frozen=True)
class Trial:
    """The outcome of a trial. `state`: passed, or why nothing was run."""

    state: str
    gates: tuple[ParityGate, ...] = ()


def try_engines(bundle: Bundle, target: str, graphs: Collection[str], *, device: int | None = None) -> Trial:
    """Run the engines of these graphs once and write the results into their manifests.

    Nothing is run if they do not fit this machine's GPU. Results are compared with ONNX Runtime's where it can run the
    same graphs.

    Args:
        target: the target of the engines
        graphs: the graphs whose engines are run; the others are left alone
        device: the GPU that they were built on, as CUDA numbers them; None: the first

    Raises: RunFailed if an engine does not load, or computes something other than ONNX Runtime; its manifest is
        removed, so that it is not used
    """

    if not graphs:
        return Trial("nothing new to try")
    every = engine_set(bundle, target)
    new = {name: engine for name, engine in every.engines.items() if name in graphs}
    engines = dataclasses.replace(every, engines=new, missing=())
    problems = check_engines(engines, read_platform(device or 0), verify=False)
    if problems:
        return Trial(f"not tried: {problems[0].reason}: {problems[0].here}")
    gates = _tried(engines, device or 0)
    failed = [gate for gate in gates if not gate.ok]
    _keep(engines, gates, {gate.graph for gate in failed})
    if failed:
        first = failed[0]
        raise RunFailed(
            f"the engine of {first.graph} failed its smoke test on this GPU: {first.kind} of {first.tensor} is "
            f"{first.found:.3g}, at most {first.limit:g}; it was not kept: try another release of {engines.flavour}"
        )
    passed = f"passed{_not_judged(engines)}"
    if any(gate.kind == "smoke test" for gate in gates):
        return Trial(passed, gates)
    precision = engines.variant.precision
    no_kernels = f"ONNX Runtime has no kernels for {precision}"
    reason = no_kernels if engines.variant.for_engines_only else "there is not enough memory for ONNX Runtime"
    return Trial(f"{passed}, not compared: {reason}", gates)


def _not_judged(engines: EngineSet) -> str:
    """Engines whose kernels could not be judged: a trial checks numbers, not kernels."""
    names = [graph for graph, manifest in engines.manifests.items() if manifest.kernel_verdict == "unjudged"]
    return f" (the kernels of {', '.join(names)} were not judged)" if names else ""


def _tried(engines: EngineSet, device: int) -> tuple[ParityGate, ...]:

    try:
        options = EngineOptions(device=device)
        gpu = open_tensorrt(engines.flavour, options, host_code=engines.host_code)
        compares = not engines.variant.for_engines_only and _fits_host(engines)
        host: Backend | None = open_backend("onnxruntime") if compares else None
        return tuple(smoke_test(engines, gpu, host))
    except SdrpnError as error:
        _keep(engines, (), set(engines.engines))
        raise RunFailed(f"the engines do not run on this GPU and were not kept: {error}") from error


def _fits_host(engines: EngineSet) -> bool:

    weights = graph_weights_bytes(engines.bundle, engines.variant)
    needed = _HOST_BASE_BYTES + _HOST_PER_WEIGHT_BYTE * max(weights[graph] for graph in engines.engines)
    available = read_machine().memory_available_bytes
    return available is None or needed <= available


def _keep(engines: EngineSet, gates: tuple[ParityGate, ...], dropped: Collection[str]) -> None:

    for graph, manifest in engines.manifests.items():
        path = engine_paths(engines.bundle.path, engines.target, graph)[1]
        if graph in dropped:
            path.unlink()
        else:
            own = tuple(gate for gate in gates if gate.graph == graph)
            write_engine_manifest(path, dataclasses.replace(manifest, parity=own))
