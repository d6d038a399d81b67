"""The seam between the two-pass method and an inference library: buffers, runners, backends.

Every array is allocated by the caller before a run, outputs too: all their shapes are known. So a step with the
same buffers is bound once and run many times, and a cache bound to both sides of a graph is updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.bundle import GraphInfo, TensorInfo
from sdrpn.errors import RunFailed
from sdrpn.host.interrupt import Cancellation

__all__ = ["Array", "Backend", "Buffer", "Runner", "Step", "check_bindings", "in_order", "nbytes", "store_in_order"]

Array = npt.NDArray[Any]
Step = Callable[[], None]


class Buffer(Protocol):
    """Memory where a backend computes, owned by whoever allocated it and valid as long as the object lives."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        ...

    def rows(self, start: int, stop: int) -> Buffer:
        """A view of (1, start:stop, ...), without a copy; the first axis must have one entry."""
        ...

    def entries(self, start: int, stop: int) -> Buffer:
        """A view of (start:stop, ...), without a copy: some requests of a batch."""
        ...

    def write(self, array: Array) -> None:
        """Host to buffer; the whole buffer, converted to its type."""
        ...

    def fill(self, fill: Callable[[Array], None]) -> None:
        """Let `fill` write all of it: an array of its shape and type, in place where the host can reach it."""
        ...

    def read(self) -> Array:
        """Buffer to host; may be a view that the next run overwrites."""
        ...

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """Put the first `rows` of `source` at `start`; rows are the last axis but one, the rest has equal extents."""
        ...

    def with_rows(self, rows: int, keep: int) -> Buffer:
        """Another number of rows, of which the first `keep` are as here and the others any finite numbers.

        The new buffer may lie in this one's memory: this one must not be used any more.
        """
        ...


class Runner(Protocol):
    """One graph, loaded."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """What it takes, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """What it gives, by name."""
        ...

    def bind(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Step:
        """Tie buffers to names; the returned step computes `results` from `feeds`, again at every call.

        The step keeps the buffers alive. Raises RunFailed where a name, type or shape does not fit.
        """
        ...

    def run(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        """Bind and step once."""
        ...

    def close(self) -> None:
        """Free what the library holds."""
        ...


class Backend(Protocol):
    """An inference library: allocates buffers and loads graphs."""

    @property
    def note(self) -> str | None:
        """What does not go as well as it could, and why; None: nothing, as far as is known by now."""
        ...

    @property
    def name(self) -> str:
        """As `--backend` spells it."""
        ...

    @property
    def prefill_rows(self) -> int | None:
        """Most rows that it likes to be given at once; None: any number. More go in several runs."""
        ...

    @property
    def most_slots(self) -> int | None:
        """Most sequences that its caches can be for at once; None: any number."""
        ...

    @property
    def cancellation(self) -> Cancellation:
        """Ends the run that is being made, where the library can, and refuses others until it is reset."""
        ...

    def allocate(self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False) -> Buffer:
        """A buffer of zeros. `for_host`: the host writes or reads it, so it may lie where that costs least."""
        ...

    def load(self, graph: GraphInfo, path: Path) -> Runner:
        """A runner for the graph at `path`. Raises RunFailed where the library refuses it."""
        ...

    def store_rows(self, caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
        """A step that copies new rows into their caches.

        Args:
            caches: (B,heads,length,width) each
            rows: (B,heads,S,width) each, which go behind what lies before
            start: int64 (B,): where the first of them goes in each entry, as it is when the step runs
        """
        ...

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """Steps that run one after the other, over and over, as one.

        Args:
            steps: as `bind` gave them
            written: what the host writes before every run, and nothing else does
            read: what it reads after every run
        """
        ...


def in_order(steps: Sequence[Step]) -> Step:
    """The plain chain: a call each."""

    def run() -> None:
        for step in steps:
            step()

    return run


def store_in_order(caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
    """The plain `Backend.store_rows`: a copy each."""

    batch = start.shape[0]
    # Of one entry the buffers themselves: not every library's views can be written to.
    entries = [
        [
            (cache.entries(i, i + 1), new.entries(i, i + 1)) if batch > 1 else (cache, new)
            for cache, new in zip(caches, rows, strict=True)
        ]
        for i in range(batch)
    ]

    def run() -> None:
        for first, pairs in zip(start.read().tolist(), entries, strict=True):
            for cache, new in pairs:
                cache.copy_rows(new, new.shape[2], first)

    return run


def check_bindings(
    graph: str,
    side: str,
    declared: Mapping[str, TensorInfo],
    given: Mapping[str, Buffer],
    symbols: dict[str, int],
) -> None:
    """Every declared name is given, with its type and shape; equal symbols have equal extents.

    `symbols` is filled with what the dynamic dimensions turned out to be. Raises RunFailed for the first misfit.
    """
    if declared.keys() != given.keys():
        missing, extra = sorted(declared.keys() - given.keys()), sorted(given.keys() - declared.keys())
        raise RunFailed(f"{graph}: {side} missing: {missing or 'none'}, unknown: {extra or 'none'}")
    for name, tensor in declared.items():
        buffer = given[name]
        if buffer.dtype.name != tensor.storage:
            raise RunFailed(f"{graph}: {name} is {buffer.dtype.name}, expected {tensor.storage}")
        pairs = zip(tensor.dims, buffer.shape, strict=False)
        expected = tuple(symbols.setdefault(dim, extent) if isinstance(dim, str) else dim for dim, extent in pairs)
        if len(buffer.shape) != len(tensor.dims) or expected != buffer.shape:
            raise RunFailed(f"{graph}: {name} has shape {buffer.shape}, expected {tensor.dims} with {symbols}")


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
