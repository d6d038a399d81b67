"""A decode step as one CUDA graph: host to device, the engines, device to host. Knows no TensorRT.

The first run enqueues everything as usual, which lets the library do what it does only once; the second is captured;
from then on the graph is launched. All addresses are part of the graph, so the buffers live as long as it. Where a step
cannot be captured, each is enqueued part by part, and `report` is told why.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.cuda import CudaFault
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Device

__all__ = ["StepGraph", "in_order_on_device"]

Step = Callable[[], None]


class StepGraph:
    """Callable; one for each set of buffers, and so for each batch size."""

    def __init__(
        self,
        device: Device,
        steps: Sequence[Step],
        uploads: Sequence[DeviceBuffer],
        downloads: Sequence[DeviceBuffer],
        *,
        ready: Callable[[], bool] = lambda: True,
        report: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Args:
        steps, uploads, downloads: what is enqueued, what it reads from the host before and gives it after
        ready: whether nothing changed since the last run that a capture cannot take; if so, it waits for the next
        report: told why, where a step cannot be captured
        """
        self._device = device
        self._uploads, self._downloads = tuple(uploads), tuple(downloads)
        self._enqueue = in_order_on_device(steps, uploads, downloads)
        self._ready, self._report = ready, report
        self._ran = self._refused = False
        self._graph: Any = None

    def __call__(self) -> None:
        """Enqueue one step."""
        if self._graph is None and self._ran and not self._refused and self._ready():
            self._capture()
        if self._graph is None:
            self._enqueue()
            self._ran = True
            return
        cuda, stream = self._device.cuda, self._device.stream
        cuda.launch(self._graph, stream.handle)
        stream.mark()
        for buffer in self._uploads:
            buffer.uploaded()
        for buffer in self._downloads:
            buffer.downloaded()

    def _capture(self) -> None:
        try:
            self._graph = self._captured()
        except CudaFault:
            raise
        except RunFailed as error:
            self._refused = True
            self._report(str(error))

    def _captured(self) -> Any:
        """Enqueue a step into a graph instead of running it. Raises RunFailed where that is refused."""
        cuda, stream = self._device.cuda, self._device.stream
        # Memory that a captured call still needs must not move: everything before is done.
        stream.synchronize()
        with _no_garbage_collection():
            cuda.begin_capture(stream.handle)
            try:
                self._enqueue()
            except BaseException:
                cuda.abandon_capture(stream.handle)
                raise
            graph = cuda.end_capture(stream.handle)
        weakref.finalize(self, _destroy, self._device, graph)
        return graph


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What other libraries free when their objects are collected would spoil a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def in_order_on_device(
    steps: Sequence[Step], uploads: Sequence[DeviceBuffer], downloads: Sequence[DeviceBuffer]
) -> Step:
    """Enqueue uploads, steps and downloads, a call each."""

    def run() -> None:
        for buffer in uploads:
            buffer.upload()
        for step in steps:
            step()
        for buffer in downloads:
            buffer.download()

    return run


def _destroy(device: Device, graph: Any) -> None:
    with suppress(RunFailed):  # after a fault of the GPU there is nothing left to destroy
        device.stream.synchronize()
        device.cuda.destroy_graph(graph)
