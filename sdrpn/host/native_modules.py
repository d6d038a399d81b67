"""The compiled modules of the package: which of them are there, and why others are not. Imports nothing else."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

__all__ = ["native_module", "why_no_native_module"]


@functools.cache
def native_module(name: str = "_native") -> ModuleType | None:
    """`sdrpn._native` or another native module; None where it was not compiled or cannot be loaded."""
    found = _imported(name)
    return found if isinstance(found, ModuleType) else None


def why_no_native_module(name: str = "_native") -> str | None:
    """Why `native_module` gives None: "was not compiled", or the loader's own reason; None: it gives the module."""
    found = _imported(name)
    if isinstance(found, ModuleType):
        return None
    if isinstance(found, ModuleNotFoundError):
        return "was not compiled"
    return f"cannot be loaded ({' '.join(str(found).split())})"


def _imported(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"sdrpn.{name}")
    except ImportError as error:
        return error
