"""Properties of an inference library that are known before it is imported: name, inputs, limits, requirements.

Knows no library. One `BackendInfo` per backend; `registry.py` lists them for selection, diagnosis and memory plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import MemoryNeeds
from sdrpn.errors import BadInput, SdrpnError
from sdrpn.host.libraries import VersionOf
from sdrpn.host.machine import Machine
from sdrpn.runtime.backends.runner import Backend
from sdrpn.runtime.backends.tensorrt import EngineOptions

__all__ = ["BackendInfo", "MemoryRequest", "OpenOptions", "Readiness", "require_compatible"]


# Options of which one is refused beside the other, and what the second does. The first is given where it is true, the
# second where it is neither None nor False: 0 activations share a scale with `accurate`, too.
_EXCLUSIONS = (
    ("vision_type", "accurate", "computes in fp32"),
    ("activation_block", "accurate", "keeps activations as floats"),
    ("decode_copy", "accurate", "keeps activations as floats, which native decode steps round"),
    ("decode_copy", "activation_block", "is not for native decode steps, which round in the blocks of the weights"),
)


def require_compatible(options: object) -> None:
    """Raise BadInput for two options that exclude each other, whatever library is to run.

    Args: options: `OpenOptions`, or what they are made of
    """
    for first, second, why in _EXCLUSIONS:
        value, other = getattr(options, first), getattr(options, second)
        if value and other is not None and other is not False:
            raise BadInput(
                f"{first} is {value}, and {second} {why}; leave one of them out",
                options=(first, second),
            )


@dataclass(frozen=True)
class Readiness:
    """Whether a backend would work on a machine."""

    ready: bool
    detail: str  # the version that it would use, or what is missing
    command: str | None = None  # the command that makes it ready, if there is one


@dataclass(frozen=True)
class MemoryRequest:
    """The memory use to estimate."""

    context: int  # positions of prompt and answer
    batch: int = 1  # sequences in a step
    mapped_bytes: int | None = None  # weights of graphs saved for this machine; None: the bundle's own graphs
    kv_cache: str | None = None  # as in `OpenOptions`
    decode_copy: bool | None = None  # as in `OpenOptions`


@dataclass(frozen=True)
class OpenOptions:
    """Options for opening a backend; each reads those that apply to it."""

    threads: int | None = None  # on the CPU; None: chosen by the cores that are free, see sdrpn.host.threads
    device: int = 0  # the CUDA device index
    optimized: bool = False  # graphs that `sdrpn optimize` saved
    accurate: bool = False  # on a CPU: activations stay floats where they meet quantised matrices
    largest_matrix: int | None = None  # weights of the largest matrix in a layer of the model; None: unknown
    engines: EngineOptions | None = None
    flavour: str = "tensorrt"  # the library that built the engines: tensorrt or tensorrt-rtx
    device_name: str | None = None  # of a library that names devices; None: its CPU
    # Where a library has the choice, how many activations share a scale where they meet quantised matrices; 0: they
    # stay floats; None: as many as weights do.
    activation_block: int | None = None
    # Where a library has the choice, keep the matrices once more, in the form that a decode step reads fastest; None:
    # those of each graph where they are small.
    decode_copy: bool | None = None
    kv_cache: str | None = None  # "int8": where a library can hold float caches in 8 bits; None: as the graphs declare
    vision_type: str | None = None  # "bf16": where a library can compute the vision tower in it; None: in fp32 or fp16
    host_code: bool = False  # engines contain code for the CPU, as version-compatible ones do

    def __post_init__(self) -> None:
        require_compatible(self)


@dataclass(frozen=True)
class BackendInfo:
    """The properties of one backend."""

    name: str  # the name for `backend=`
    library: str  # for messages
    purpose: str  # its name in a diagnosis
    runs: Literal["graphs", "engines"]
    on: Literal["cpu", "gpu"]
    # Whether it would work here, by the versions of installed distributions. Imports no more than the library itself,
    # and that only where it is installed.
    probe: Callable[[Machine, VersionOf], Readiness]
    # Sort key for the variants of a bundle: the best one comes first.
    preference: Callable[[Variant], tuple[object, ...]]
    # The error to raise where it cannot run a variant; None: it can.
    refuses: Callable[[Bundle, Variant], SdrpnError | None]
    needs: Callable[[Bundle, Variant, MemoryRequest], MemoryNeeds]
    # Raises MissingDependency where the library is absent, BadInput where it does not find the device.
    open: Callable[[OpenOptions], Backend]
    # What its kernels read on a CPU for the scale of a block of quantised weights, which files have in fp16.
    scale_bytes: int = 2
    # The options that are not for every backend: "device_name", "activation_block", "kv_cache",
    # "decode_copy", "vision_type".
    takes: frozenset[str] = frozenset()
