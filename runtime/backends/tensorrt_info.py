"""Properties of TensorRT and TensorRT-RTX, which run engines, that are known before either is imported."""

from __future__ import annotations

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import MemoryNeeds, device_needs, graph_weights_bytes
from sdrpn.errors import SdrpnError
from sdrpn.host.libraries import VersionOf, install_command
from sdrpn.host.machine import Machine
from sdrpn.runtime.backends.cuda import load_cuda
from sdrpn.runtime.backends.info import BackendInfo, MemoryRequest, OpenOptions, Readiness
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.backends.tensorrt import EngineOptions, TensorRtBackend
from sdrpn.runtime.backends.tensorrt_library import open_library

__all__ = ["TENSORRT", "open_tensorrt"]

_NAME = "tensorrt"
# Distributions with a library, and the extra that installs each.
_LIBRARIES = {"TensorRT": ("tensorrt", "tensorrt"), "TensorRT-RTX": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx")}


def open_tensorrt(flavour: str, options: EngineOptions | None = None, *, host_code: bool = False) -> Backend:
    """The backend for engines of one flavour.

    Args:
        host_code: allow engines to run host code, which version-compatible ones contain
    Raises: MissingDependency where TensorRT or cuda-python is absent, RunFailed where CUDA finds no GPU
    """
    options = options or EngineOptions()
    cuda = load_cuda(f"backend {_NAME}", options.device)
    return TensorRtBackend(open_library(flavour), cuda, options, host_code=host_code)


def _open(options: OpenOptions) -> Backend:
    engines = options.engines or EngineOptions(device=options.device)
    return open_tensorrt(options.flavour, engines, host_code=options.host_code)


def _probe(machine: Machine, version_of: VersionOf) -> Readiness:
    """Ready with a GPU, one of the libraries and cuda-python; whether engines fit is checked separately."""
    if not machine.gpus and machine.jetson is None:
        return Readiness(False, "no NVIDIA GPU, or its driver is not installed")
    found = [f"{name} {version}" for name, (library, _) in _LIBRARIES.items() if (version := version_of(library))]
    if not found:
        if machine.jetson is not None:
            return Readiness(False, "TensorRT comes with JetPack, see the notes")
        return Readiness(False, "neither TensorRT nor TensorRT-RTX is installed", install_command("tensorrt"))
    if version_of("cuda-python") is None:
        return Readiness(False, "cuda-python is not installed", install_command("device"))
    return Readiness(True, ", ".join(found))


def _refuses(bundle: Bundle, variant: Variant) -> SdrpnError | None:
    """None: engines can be built from any variant; the preflight checks whether existing ones fit."""
    return None


def _memory(bundle: Bundle, variant: Variant, request: MemoryRequest) -> MemoryNeeds:
    return device_needs(
        bundle.spec,
        sum(graph_weights_bytes(bundle, variant).values()),
        context=request.context,
        batch=request.batch,
        kv_cache=variant.kv_cache,
        parts=variant.parts,
    )


TENSORRT = BackendInfo(
    name=_NAME,
    library="TensorRT or TensorRT-RTX",
    purpose="ask, with engines",
    runs="engines",
    on="gpu",
    probe=_probe,
    preference=lambda variant: (variant.name,),
    refuses=_refuses,
    needs=_memory,
    open=_open,
)
