"""A backend without a library: Python functions instead of graphs, and a record of their calls.

For tests of everything above the backend interface, in this project and in others that build on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.errors import RunFailed
from sdrpn.host.interrupt import Cancellation
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.runner import Array, Buffer, Step, check_bindings, in_order, store_in_order

__all__ = ["Compute", "FakeBackend", "FakeCall", "FakeRunner"]

# Inputs by name -> outputs by name; omitted outputs are not changed.
Compute = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class FakeCall:
    """One run of one graph: its inputs, and the bound addresses."""

    graph: str
    feeds: Mapping[str, Array]  # copies of all inputs except the caches
    addresses: Mapping[str, int]  # of inputs and outputs


@dataclass
class FakeBackend:
    """Graphs by name, each a function; every run is appended to `calls`."""

    graphs: Mapping[str, Compute]
    calls: list[FakeCall] = field(default_factory=list)
    name: str = "fake"
    prefill_rows: int | None = None
    reads_whole_caches: bool = False
    most_slots: int | None = None
    on: Literal["cpu", "gpu"] = "cpu"
    free_bytes: int | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)
    note: str | None = None

    def free_memory(self) -> int | None:
        """What was set."""
        return self.free_bytes

    def allocate(
        self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False, for_cache: bool = False
    ) -> Buffer:
        """Allocate zeros in host memory."""
        return HostBuffer(np.zeros(shape, dtype))

    def load(self, graph: GraphInfo, path: Path) -> FakeRunner:
        """The function for the graph; the file is not read."""
        return FakeRunner(graph, self.graphs[graph.name], self.calls)

    def store_rows(self, caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
        """See `Backend.store_rows`."""
        return store_in_order(caches, rows, start)

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """See `Backend.chain`."""
        return in_order(steps)


class FakeRunner:
    """Checks bindings like every runner, then calls its function."""

    def __init__(self, graph: GraphInfo, compute: Compute, calls: list[FakeCall]) -> None:
        self.name = graph.name
        self.inputs = {tensor.name: tensor for tensor in graph.inputs}
        self.outputs = {tensor.name: tensor for tensor in graph.outputs}
        self._compute, self._calls = compute, calls
        self._closed = False

    def bind(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Callable[[], None]:
        """See `Runner.bind`."""
        if self._closed:
            raise RunFailed(f"the {self.name} graph was closed; open the session again")
        symbols: dict[str, int] = {}
        check_bindings(self.name, "inputs", self.inputs, feeds, symbols)
        check_bindings(self.name, "outputs", self.outputs, results, symbols)
        return lambda: self._step(feeds, results)

    def run(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        """See `Runner.run`."""
        self.bind(feeds, results)()

    def close(self) -> None:
        """Refuse further runs."""
        self._closed = True

    def _step(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        arrays = {name: buffer.read() for name, buffer in feeds.items()}
        small = {name: array.copy() for name, array in arrays.items() if "cache" not in name}
        addresses = {name: b.read().ctypes.data for name, b in (*feeds.items(), *results.items())}
        self._calls.append(FakeCall(self.name, small, addresses))
        for name, array in self._compute(arrays).items():
            results[name].write(array)
