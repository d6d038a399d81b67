"""What is known of an inference library before it is imported: its name, what it runs, what it refuses, what it needs.

Knows no library. One `BackendInfo` a backend; `registry.py` lists them, and whoever chooses, diagnoses or plans asks
them in a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import MemoryNeeds
from sdrpn.errors import SdrpnError
from sdrpn.host.libraries import VersionOf
from sdrpn.host.machine import Machine
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.backends.tensorrt import EngineOptions

__all__ = ["BackendInfo", "MemoryRequest", "OpenOptions", "Readiness"]


@dataclass(frozen=True)
class Readiness:
    """Whether a backend would work on a machine."""

    ready: bool
    detail: str  # what it would run with, or what is missing
    command: str | None = None  # what makes it ready, where a command can


@dataclass(frozen=True)
class MemoryRequest:
    """What is to be held in memory at once."""

    context: int  # positions of prompt and answer
    batch: int = 1  # sequences in a step
    mapped_bytes: int | None = None  # weights of graphs saved for this machine; None: the bundle's own graphs


@dataclass(frozen=True)
class OpenOptions:
    """How a backend is opened; each reads what concerns it."""

    threads: int | None = None  # of the CPU; None: one per core
    device: int = 0  # which GPU, as CUDA numbers them
    optimized: bool = False  # graphs that `sdrpn optimize` saved
    engines: EngineOptions | None = None
    flavour: str = "tensorrt"  # the library that built the engines: tensorrt or tensorrt-rtx
    host_code: bool = False  # engines bring code for the CPU along, which version-compatible ones do


@dataclass(frozen=True)
class BackendInfo:
    """One backend."""

    name: str  # as `--backend` spells it
    library: str  # for people
    purpose: str  # what a diagnosis calls it
    runs: Literal["graphs", "engines"]
    on: Literal["cpu", "gpu"]
    # Whether it would work here, by the versions of installed distributions. Imports no more than the library itself,
    # and that only where it is installed.
    probe: Callable[[Machine, VersionOf], Readiness]
    # Order among the variants of a bundle: what answers best comes first.
    preference: Callable[[Variant], tuple[object, ...]]
    # Why it cannot answer with a variant, as the error to raise; None: it can.
    refuses: Callable[[Bundle, Variant], SdrpnError | None]
    needs: Callable[[Bundle, Variant, MemoryRequest], MemoryNeeds]
    # Raises MissingDependency where the library is absent, RunFailed where it finds no device.
    open: Callable[[OpenOptions], Backend]
