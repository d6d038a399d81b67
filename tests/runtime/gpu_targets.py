"""Whether engines can be built for the GPU of this machine at all."""

from __future__ import annotations

from typing import Any

import pytest

from sdrpn.engines.flavour import library_module

__all__ = ["require_capability"]


def require_capability(flavour: str, capability: str, library: Any = None) -> None:
    """Skip the test where the library does not compile for this GPU: TensorRT-RTX knows GeForce and RTX, no H100.

    Args:
        library: TensorRT-RTX's module (for tests); None: the installed one
    """
    if flavour != "tensorrt-rtx":  # TensorRT builds for whatever it runs on
        return
    trt = library if library is not None else library_module(flavour)
    known = sorted(name for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    if capability not in known:
        pytest.skip(f"{flavour} {trt.__version__} does not build for {capability}; it supports {', '.join(known)}")
