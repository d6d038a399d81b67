"""SD-RPN on the edge: look at an image once, crop where it matters, answer with the detail added."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("sdrpn")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
