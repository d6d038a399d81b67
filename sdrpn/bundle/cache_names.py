"""What a manifest calls caches in 8 bits. Knows no numbers."""

from __future__ import annotations

__all__ = ["scale_cache_name"]


def scale_cache_name(cache: str) -> str:
    """key_cache.3 -> key_scale_cache.3, and likewise for the names of outputs."""
    return cache.replace("_cache", "_scale_cache", 1)
