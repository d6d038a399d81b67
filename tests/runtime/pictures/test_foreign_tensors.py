"""Tensors of other libraries on the same GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")


from sdrpn.errors import BadInput
from tests.runtime.asking import buffers_for
from tests.runtime.gpu import FakeGpu
from tests.runtime.pictures.test_gpu_pixels import array_at


class Foreign:
    """A tensor of another library."""

    def __init__(self, buffer: Any, **changes: Any) -> None:
        self.__cuda_array_interface__ = {**buffer.__cuda_array_interface__, **changes}


def test_a_buffer_is_offered_to_them(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    buffer = backend.allocate((2, 3), "float16")
    assert buffer.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (buffer.pointer, False),
        "strides": None,
        "version": 3,
        "stream": backend.device.stream.address,
    }


def test_their_tensors_are_taken_without_a_copy(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    theirs = backend.allocate((2, 3), "float32")
    theirs.write(np.ones((2, 3), np.float32))
    before, stream = len(gpu.cuda.calls), gpu.cuda.foreign_stream()
    ours = backend.wrap(Foreign(theirs, strides=(12, 4), stream=stream))
    assert ("cudaStreamSynchronize", stream) in gpu.cuda.calls[before:]  # what they still compute
    assert (ours.pointer, ours.shape) == (theirs.pointer, theirs.shape)
    target = backend.allocate((2, 3), "float32")
    target.write(Foreign(theirs))  # type: ignore[arg-type]
    np.testing.assert_array_equal(target.read(), 1)


@pytest.mark.parametrize("stream", ["absent", None, 0, "given"])
def test_what_they_still_compute_is_waited_for(gpu: FakeGpu, stream: Any) -> None:
    """torch names no stream, pycuda says None; our own stream waits for no other."""
    backend = gpu.backend()
    theirs, ours = (backend.allocate((2, 3), "float32") for _ in range(2))
    backend.device.stream.synchronize()
    producer = gpu.cuda.foreign_stream()
    place = (theirs.pointer, theirs.size_bytes)
    gpu.cuda.launch(producer, "fill", lambda: array_at(theirs.pointer, (2, 3), np.float32).fill(7), (), (place,))
    tensor = Foreign(theirs, stream=producer if stream == "given" else stream)
    if stream == "absent":
        del tensor.__cuda_array_interface__["stream"]
    ours.write(tensor)  # type: ignore[arg-type]
    np.testing.assert_array_equal(ours.read(), 7)
    assert gpu.cuda.violations == []


def test_the_fake_would_notice_a_tensor_that_is_not_waited_for(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    theirs, ours = (backend.allocate((2, 3), "float32") for _ in range(2))
    backend.device.stream.synchronize()
    gpu.cuda.launch(gpu.cuda.foreign_stream(), "fill", lambda: None, (), ((theirs.pointer, 24),))
    ours.copy_from(theirs)
    assert gpu.cuda.violations == ["copy races with fill of another stream"]


def test_tensors_that_begin_where_none_of_tensorrt_may(gpu: FakeGpu) -> None:
    """They are taken; a step copies them to a place of their own."""
    backend = gpu.backend()
    runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["tail"], gpu.engine("tail"))
    feeds, results = buffers_for(backend, runner)
    feeds["tap"].write(np.ones((1, 1, 64), np.float32))
    runner.run(feeds, results)
    expected = results["logits"].read().copy()
    room = backend.allocate((1, 1, 65), "float32")
    tensor = Foreign(room, shape=(1, 1, 64), data=(room.pointer + 4, False))
    place = backend.wrap(tensor)
    place.copy_from(feeds["tap"])
    runner.run({**feeds, "tap": place}, results)
    np.testing.assert_array_equal(results["logits"].read(), expected)
    assert gpu.cuda.violations == []


def test_what_cannot_be_taken(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    theirs = backend.allocate((2, 3), "float32")
    with pytest.raises(BadInput, match="ndarray has no __cuda_array_interface__; expected a tensor on the GPU"):
        backend.wrap(np.zeros(3))
    with pytest.raises(BadInput, match=r"strides are \(4, 8\); expected a contiguous one"):
        backend.wrap(Foreign(theirs, strides=(4, 8)))
    with pytest.raises(BadInput, match="the tensor has a mask; expected one without"):
        backend.wrap(Foreign(theirs, mask=theirs))
    with pytest.raises(BadInput, match=r"begins at 0x\w+, inside an element; expected a multiple of 4"):
        backend.wrap(Foreign(theirs, data=(theirs.pointer + 2, False)))
    host = np.zeros((2, 3), np.float32)
    with pytest.raises(BadInput, match=r"the tensor at 0x\w+ is in the host's memory; expected a tensor on the GPU"):
        backend.wrap(Foreign(theirs, data=(host.ctypes.data, False)))
    with pytest.raises(BadInput, match=r"the tensor is float32 \(2, 3\); expected float32 \(3, 2\)"):
        backend.allocate((3, 2), "float32").write(Foreign(theirs))  # type: ignore[arg-type]
