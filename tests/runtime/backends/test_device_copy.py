"""Buffers in ONNX Runtime's own memory: rows are copied where they lie, and slots answer together.

Run on its CPU device, since there is no GPU: addresses, sizes and order are the same there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadInput, RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime.backends.device_copy import _identity, copy_bytes
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from sdrpn.runtime.backends.onnxruntime_cuda import DeviceBuffer
from tests.runtime.together import alone, require_equal, together
from tests.tolerances import BATCH_LOGITS_ABS

NUMBERS = range(7)


class OwnMemory(OnnxRuntimeBackend):
    """As on a GPU: buffers are the library's, in parts that only it can write."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.on, self.prefill_rows = "gpu", None

    def allocate(
        self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False, for_cache: bool = False
    ) -> DeviceBuffer:
        return DeviceBuffer.zeros(shape, dtype, "cpu", 0)


def test_the_graph_is_sound() -> None:
    model = onnx.load_from_string(_identity())
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 1 << 20])
def test_bytes(size_bytes: int) -> None:
    source = np.random.default_rng(0).integers(0, 256, size_bytes + 2, dtype=np.uint8)
    target = np.zeros_like(source)
    copy_bytes("cpu", 0, target.ctypes.data + 1, source.ctypes.data + 1, size_bytes)
    np.testing.assert_array_equal(target[1:-1], source[1:-1])
    assert target[0] == target[-1] == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize(("rows", "start"), [(0, 0), (2, 0), (3, 4), (8, 0)])
def test_rows_are_those_of_a_buffer_of_the_host(dtype: str, rows: int, start: int) -> None:
    """A copy of a part of a batch into a part of another, whose neighbours stay."""
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 100, shape).astype(dtype) for shape in ((3, 2, 8, 4), (2, 2, 8, 4))]
    ours = [DeviceBuffer.zeros(value.shape, dtype, "cpu", 0) for value in values]
    theirs = [HostBuffer(value.copy()) for value in values]
    for buffer, value in zip(ours, values, strict=True):
        buffer.write(value)
    ours[0].entries(1, 2).copy_rows(ours[1].entries(1, 2), rows, start)
    theirs[0].entries(1, 2).copy_rows(theirs[1].entries(1, 2), rows, start)
    np.testing.assert_array_equal(ours[0].read(), theirs[0].read())
    with pytest.raises(RunFailed, match="rows come from a HostBuffer; expected a buffer of the same device"):
        ours[0].copy_rows(theirs[1], 1)


def test_answers_are_those_of_each_alone(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    variant = bundle.variant("fused-fp32")
    with Session.open(tiny_bundle, variant=variant.name, threads=1) as plain:
        expected = alone(plain, NUMBERS)
    with Session(bundle, variant, OwnMemory(), max_batch=4) as session:
        for found, each in zip(together(session, NUMBERS), expected, strict=True):
            require_equal(found, each, BATCH_LOGITS_ABS)
        assert len(session._decoder.slots.all) == 4
    with Session(bundle, variant, OwnMemory()) as session:
        assert session._scheduler.max_batch == 1
    with pytest.raises(BadInput, match="max_batch is 0; expected a number of questions, at least 1"):
        Session(bundle, variant, OwnMemory(), max_batch=0)
