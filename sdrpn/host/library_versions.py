"""The versions of the libraries that decide what a model answers. None of them is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions"]

_LIBRARIES = (
    "sdrpn",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-rtx-cu13-libs",
    "tensorrt-rtx-cu12-libs",
    "cuda-python",
    "numpy",
)


def library_versions() -> dict[str, str]:
    """The versions of those that are installed, by the name of their distribution."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
