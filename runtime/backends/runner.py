"""The interface between the two-pass method and an inference library: buffers, runners, backends.

The caller allocates every array before a run, including outputs, whose shapes are known. So a step with the same
buffers is bound once and run many times, and a cache bound as input and output is updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.bundle import GraphInfo, TensorInfo
from sdrpn.errors import RunFailed
from sdrpn.host.interrupt import Cancellation

__all__ = [
    "Array",
    "Backend",
    "Buffer",
    "HasSteps",
    "Runner",
    "Step",
    "check_bindings",
    "in_order",
    "nbytes",
    "store_in_order",
]

Array = npt.NDArray[Any]
Step = Callable[[], None]


class Buffer(Protocol):
    """Memory of a backend, owned by the caller that allocated it and valid as long as the object lives."""

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
        """Let `fill` write an array of the buffer's shape and type, in place where the host can access it."""
        ...

    def read(self) -> Array:
        """Buffer to host; may be a view that the next run overwrites."""
        ...

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """Copy the first `rows` of `source` to `start`; rows are the second to last axis, other extents are equal."""
        ...

    def with_rows(self, rows: int, keep: int) -> Buffer:
        """A buffer with another number of rows: the first `keep` are copied, the others are any finite numbers.

        The new buffer may share this one's memory: this one must not be used any more.
        """
        ...


class Runner(Protocol):
    """A loaded graph."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """The inputs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """The outputs by name."""
        ...

    def bind(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Step:
        """Bind buffers to names; the returned step computes `results` from `feeds` at every call.

        The step keeps the buffers alive. Raises RunFailed where a name, type or shape does not fit.
        """
        ...

    def run(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        """Bind and run once."""
        ...

    def close(self) -> None:
        """Free the library's resources."""
        ...


@runtime_checkable
class HasSteps(Protocol):
    """A graph that reads its matrices in another form where single rows are asked for."""

    @property
    def step_bytes(self) -> int | None:
        """What it reads of them in a decode step; None: as in every run."""
        ...


class Backend(Protocol):
    """An inference library: allocates buffers and loads graphs."""

    @property
    def note(self) -> str | None:
        """A note on degraded performance, and why; None: none known so far."""
        ...

    @property
    def name(self) -> str:
        """The name of the backend, as for `backend=`."""
        ...

    @property
    def prefill_rows(self) -> int | None:
        """The preferred maximum of rows in one run; longer prompts take several runs. None: any number."""
        ...

    @property
    def reads_whole_caches(self) -> bool:
        """Whether attention goes over all rows of a cache, also those that are not in use."""
        ...

    @property
    def most_slots(self) -> int | None:
        """The maximum number of sequences in its caches; None: any number."""
        ...

    @property
    def on(self) -> Literal["cpu", "gpu"]:
        """Where its buffers are. On a GPU memory is planned beforehand: what a session may need is taken at once."""
        ...

    def free_memory(self) -> int | None:
        """Bytes that can still be allocated; None: not known."""
        ...

    @property
    def cancellation(self) -> Cancellation:
        """Cancels the current run, where the library supports it, and refuses others until it is reset."""
        ...

    def allocate(
        self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False, for_cache: bool = False
    ) -> Buffer:
        """A buffer of zeros.

        Args:
            for_host: the host writes or reads it, so it may be placed where that costs least
            for_cache: it holds rows of a cache (B,heads,rows,width), which may be laid out as the library likes
        """
        ...

    def load(self, graph: GraphInfo, path: Path) -> Runner:
        """A runner for the graph at `path`. Raises RunFailed where the library refuses it."""
        ...

    def store_rows(self, caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
        """A step that copies new rows into their caches.

        Args:
            caches: (B,heads,length,width) each
            rows: (B,heads,S,width) each, the new rows
            start: int64 (B,): the position of the first new row in each entry, read when the step runs
        """
        ...

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """Combine steps that run one after the other, many times, into one.

        Args:
            steps: from `bind`
            written: buffers that only the host writes, before every run
            read: buffers that the host reads after every run
        """
        ...


def in_order(steps: Sequence[Step]) -> Step:
    """The simple chain: one call per step."""

    def run() -> None:
        for step in steps:
            step()

    return run


def store_in_order(caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
    """The simple `Backend.store_rows`: one copy per cache."""

    batch = start.shape[0]
    # With one entry, the buffers themselves: not all libraries can write to views.
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
    """Check that every declared name is bound, with its type and shape, and that equal symbols have equal extents.

    `symbols` receives the extents of the dynamic dimensions. Raises RunFailed for the first mismatch.
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
    """The size of an array in bytes."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
