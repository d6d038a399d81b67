"""One module per inference library; a library is imported only when its backend is asked for."""

from __future__ import annotations

from sdrpn.errors import BadInput
from sdrpn.runtime.runner import Backend

__all__ = ["BACKENDS", "open_backend"]

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt")


def open_backend(name: str, threads: int | None = None) -> Backend:
    """The backend called `name`. Raises BadInput for an unknown one, MissingDependency where its library is absent."""
    if name not in BACKENDS:
        raise BadInput(f"backend {name!r} is unknown; expected one of {', '.join(BACKENDS)}")
    from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(name, threads)
