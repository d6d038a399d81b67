"""One module per inference library; a library is imported only when its backend is asked for."""

from __future__ import annotations

import importlib

from sdrpn.errors import BadInput, MissingDependency
from sdrpn.runtime.runner import Backend

__all__ = ["BACKENDS", "open_backend"]

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt")


def open_backend(name: str, threads: int | None = None) -> Backend:
    """The backend called `name`. Raises BadInput for an unknown one, MissingDependency where its library is absent."""
    if name not in BACKENDS:
        raise BadInput(f"backend {name!r} is unknown; expected one of {', '.join(BACKENDS)}")
    _require_onnxruntime(name)
    from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(name, threads)


def _require_onnxruntime(backend: str) -> None:
    """It is part of the base install, but two wheels own its folder: removing one breaks the other."""
    try:
        # An attribute, because what an uninstalled wheel leaves behind may be a folder that imports as an empty module.
        importlib.import_module("onnxruntime").InferenceSession  # noqa: B018
    except (ImportError, AttributeError) as error:
        wheel = "onnxruntime" if backend == "onnxruntime" else "onnxruntime-gpu"
        raise MissingDependency(
            f"backend {backend} needs ONNX Runtime, which cannot be imported ({' '.join(str(error).split())}); "
            f"install it again: pip install --force-reinstall {wheel}"
        ) from error
