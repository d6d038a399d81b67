"""What a manifest calls caches in 8 bits, and the types that it gives them. Knows no numbers."""

from __future__ import annotations

from sdrpn.errors import BadInput

__all__ = ["CODE_DTYPES", "code_dtype", "scale_cache_name"]

# How keys and values are kept -> the type of their codes, as a manifest spells it.
CODE_DTYPES = {"int8": "int8", "fp8": "float8_e4m3fn"}


def code_dtype(name: str | None) -> str | None:
    """By the name; None for caches in the type that the graph computes in. Raises BadInput for an unknown one."""
    if name is None:
        return None
    if name not in CODE_DTYPES:
        raise BadInput(f"caches in {name!r} are unknown; expected one of {', '.join(CODE_DTYPES)}, or none")
    return CODE_DTYPES[name]


def scale_cache_name(cache: str) -> str:
    """key_cache.3 -> key_scale_cache.3, and likewise for the names of outputs."""
    return cache.replace("_cache", "_scale_cache", 1)
