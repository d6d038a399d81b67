"""One module per inference library; a library is imported only when its backend is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from sdrpn.errors import BadInput, MissingDependency
from sdrpn.runtime.backends.cuda import load_cuda
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.backends.tensorrt import EngineOptions, TensorRtBackend
from sdrpn.runtime.backends.tensorrt_library import open_library

__all__ = ["BACKENDS", "onnxruntime_version", "open_backend", "open_tensorrt"]

# `tensorrt` runs engines; the others run the ONNX graphs themselves.
BACKENDS = ("onnxruntime", "onnxruntime-cuda", "tensorrt")


def open_tensorrt(flavour: str, options: EngineOptions | None = None, *, host_code: bool = False) -> Backend:
    """The backend for engines of one flavour.

    Args:
        host_code: let engines run the code that version-compatible ones bring along
    Raises: MissingDependency where TensorRT or cuda-python is absent, RunFailed where CUDA finds no GPU
    """
    options = options or EngineOptions()
    cuda = load_cuda("backend tensorrt", options.device)
    return TensorRtBackend(open_library(flavour), cuda, options, host_code=host_code)


def onnxruntime_version() -> str:
    """Raises: MissingDependency where ONNX Runtime cannot be imported"""
    return str(_require_onnxruntime("onnxruntime").__version__)


def open_backend(name: str, threads: int | None = None, *, optimized: bool = False, device: int = 0) -> Backend:
    """A backend that runs ONNX graphs.

    Args:
        optimized: those that `sdrpn optimize` saved
        device: the GPU, for a backend that uses one
    Raises: BadInput for an unknown one, MissingDependency where its library is absent
    """
    if name not in BACKENDS:
        raise BadInput(f"backend {name!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if name == "tensorrt":
        raise BadInput("backend tensorrt runs engines, not ONNX graphs; expected one of ONNX Runtime's")
    _require_onnxruntime(name)
    from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(name, threads, device, optimized=optimized)


def _require_onnxruntime(backend: str) -> Any:
    """It is part of the base install, but two wheels own its folder: removing one breaks the other."""
    try:
        # An attribute, because what an uninstalled wheel leaves behind may be a folder that imports as an empty module.
        library = importlib.import_module("onnxruntime")
        library.InferenceSession  # noqa: B018
    except (ImportError, AttributeError) as error:
        wheel = "onnxruntime" if backend == "onnxruntime" else "onnxruntime-gpu"
        raise MissingDependency(
            f"backend {backend} needs ONNX Runtime, which cannot be imported ({' '.join(str(error).split())}); "
            f"install it again: pip install --force-reinstall {wheel}"
        ) from error
    return library
