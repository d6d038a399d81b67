"""A decode step as one CUDA graph: host to device, the engines, device to host. Knows no TensorRT.

The first run enqueues everything as usual, so that the library does its one-time work; the second is captured; from
then on the graph is launched. All addresses are part of the graph, so it keeps the buffers alive. Where a step cannot
be captured, its parts are enqueued one by one, and `report` gets the reason.
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
    """A callable step; one for each set of buffers, and so for each batch size."""

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
        steps, uploads, downloads: the work, the buffers copied from the host before it, and those copied to it after
        ready: whether the last run left nothing that a capture forbids; otherwise the capture waits for the next run
        report: called with the reason where a step cannot be captured
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
        self._device.launches += 1
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
        """Capture a step as a graph instead of running it. Raises RunFailed where that fails."""
        cuda, stream = self._device.cuda, self._device.stream
        # Wait first, so that no memory needed by the capture is still in use.
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
    """Disable garbage collection: if other libraries freed memory, the capture would fail."""
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
    """Enqueue uploads, steps and downloads one by one."""

    def run() -> None:
        for buffer in uploads:
            buffer.upload()
        for step in steps:
            step()
        for buffer in downloads:
            buffer.download()

    return run


def _destroy(device: Device, graph: Any) -> None:
    with suppress(RunFailed):  # after a GPU fault there is nothing left to destroy
        device.stream.synchronize()
        device.cuda.destroy_graph(graph)
