"""Targets and messages as tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrpn.engines import Target, read_target

__all__ = ["RTX_TARGET", "primitive_target", "target"]

RTX_TARGET = "rtx-4090"


def target(**changes: Any) -> Target:
    """A good target, but for the changes."""
    values: dict[str, Any] = {
        "name": "mine",
        "device": "My GPU",
        "compute_capabilities": ("SM86",),
        "flavour": "tensorrt-rtx",
        "tensorrt_min": "1.7",
        "dialect": "fused",
        "precisions": ("fp16",),
        "memory_gb": 8,
        "unified_memory": False,
        "built": "here",
    }
    return Target(**{**values, **changes})


def primitive_target(folder: Path) -> Path:
    """A file that describes a target of TensorRT-RTX with the dialect `primitive`."""
    source = Path(str(read_target.__globals__["_FOLDER"])) / f"{RTX_TARGET}.toml"
    path = folder / "my-primitive.toml"
    path.write_text(source.read_text(encoding="utf-8").replace('"fused"', '"primitive"'), encoding="utf-8")
    return path
