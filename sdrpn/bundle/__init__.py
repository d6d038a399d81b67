"""The folder that passes a model from stage to stage, read and checked. Runs nothing."""

from __future__ import annotations

import warnings
from importlib import import_module


def __getattr__(name: str) -> object:
    """Names of the former module `sdrpn.bundle`, kept for one version. Warns."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not a from-import, which would call this function again.
    bundle = import_module("sdrpn.bundle.bundle")
    if name not in bundle.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__}.{name} is {bundle.__name__}.{name} now; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    found: object = getattr(bundle, name)
    return found
