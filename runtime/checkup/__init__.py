"""Check a device step by step: CUDA, pictures, and a bundle's graphs or engines. A step that fails ends no other.

Each group of steps runs in a process of its own, so that a fault of the GPU or a crash of a library is a result too.
"""

from __future__ import annotations

from sdrpn.runtime.checkup.groups import CheckupRequest
from sdrpn.runtime.checkup.opened_bundle import OpenedBundle
from sdrpn.runtime.checkup.parent import run_checkup

__all__ = ["CheckupRequest", "OpenedBundle", "run_checkup"]
