"""Every backend by name. A new backend is a module with its `BackendInfo`, and a line here."""

from __future__ import annotations

from sdrpn.errors import BadInput
from sdrpn.host.suggestion import unknown_choice
from sdrpn.runtime.backends.info import BackendInfo, OpenOptions
from sdrpn.runtime.backends.onnxruntime_info import CPU, CUDA
from sdrpn.runtime.backends.openvino_info import OPENVINO
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.backends.tensorrt_info import TENSORRT

__all__ = ["AUTOMATIC", "BACKENDS", "backend_info", "graph_backends", "open_backend"]

AUTOMATIC = "auto"
# Those that run graphs are in the order in which "auto" tries them.
BACKENDS: dict[str, BackendInfo] = {info.name: info for info in (CPU, OPENVINO, CUDA, TENSORRT)}
# Removed backends of earlier releases, and their replacements.
_REMOVED = {
    "onnxruntime-tensorrt": "backend onnxruntime-tensorrt was removed: it compiled again for every prompt length; "
    "use tensorrt with the engines of sdrpn build, or onnxruntime-cuda"
}


def backend_info(name: str) -> BackendInfo:
    """The backend of this name. Raises BadInput for an unknown or removed backend."""
    if name in BACKENDS:
        return BACKENDS[name]
    if name in _REMOVED:
        raise BadInput(_REMOVED[name], options=("backend",))
    raise BadInput(f"backend {unknown_choice(name, (AUTOMATIC, *BACKENDS))}", options=("backend",))


def graph_backends() -> tuple[BackendInfo, ...]:
    """The backends that run a bundle's graphs, in order."""
    return tuple(info for info in BACKENDS.values() if info.runs == "graphs")


def open_backend(
    name: str,
    threads: int | None = None,
    *,
    optimized: bool = False,
    device: int = 0,
    largest_matrix: int | None = None,
) -> Backend:
    """A backend that runs graphs, by name.

    Args:
        optimized: the graphs were saved by `sdrpn optimize`
        threads, largest_matrix: see `sdrpn.host.threads.choose_threads`
        device: the GPU, for a backend that uses one
    Raises: BadInput for a backend that is unknown or runs engines, MissingDependency where its library is absent
    """
    info = backend_info(name)
    if info.runs != "graphs":
        known = ", ".join(other.name for other in graph_backends())
        raise BadInput(f"backend {name} runs engines, not ONNX graphs; expected one of {known}")
    return info.open(OpenOptions(threads, device, optimized, largest_matrix=largest_matrix))
