"""Check a device step by step: CUDA, pictures, and a bundle's graphs or engines. A failed step does not stop others.

Each group of steps runs in its own process, so that a GPU fault or a crash of a library is a result, too.
"""

from __future__ import annotations

from sdrpn.runtime.checkup.groups import CheckupRequest, opened_bundle
from sdrpn.runtime.checkup.opened_bundle import OpenedBundle
from sdrpn.runtime.checkup.parent import run_checkup

__all__ = ["CheckupRequest", "OpenedBundle", "opened_bundle", "run_checkup"]
