"""New rows of caches, put in place by one kernel: its text is run here, thread by thread, and compared with copies."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import driver as real

from sdrpn.errors import RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime.backends.row_store import PTX, RowCopies, RowStore, row_table
from tests.runtime.asking import conversation, require_same
from tests.runtime.gpu import FakeGpu, fake_gpu
from tests.runtime.ptx import run_ptx


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("threads", [1, 8])
def test_the_kernel_is_as_good_as_copies(gpu: FakeGpu, rows: int, threads: int) -> None:
    """Caches of several shapes and types at once, two entries of a batch at places of their own."""
    backend = gpu.backend()
    rng = np.random.default_rng(0)
    shapes = [((2, 3, 8, 4), "float16"), ((2, 3, 8, 1), "float16"), ((2, 1, 8, 5), "int8"), ((2, 3, 8, 4), "float32")]
    caches = [backend.allocate(shape, dtype) for shape, dtype in shapes]
    new = [backend.allocate((*shape[:2], rows, shape[3]), dtype) for shape, dtype in shapes]
    starts = np.array([2, 5])
    place = backend.allocate((2,), "int64")
    place.write(starts)
    expected = []
    for cache, fresh in zip(caches, new, strict=True):
        cache.write(rng.integers(0, 100, cache.shape).astype(cache.dtype))
        fresh.write(rng.integers(0, 100, fresh.shape).astype(fresh.dtype))
        wanted = cache.read().copy()
        for entry, start in enumerate(starts):
            wanted[entry, :, start : start + rows] = fresh.read()[entry]
        expected.append(wanted)
    table = row_table(caches, new)
    run_ptx(PTX, (int(table[:, 6].max()), len(caches)), threads, {"table": table.ctypes.data, "starts": place.pointer})
    for cache, wanted in zip(caches, expected, strict=True):
        cache.changed()
        np.testing.assert_array_equal(cache.read(), wanted)


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_an_assembler_takes_it(tmp_path: Path, capability: str) -> None:
    (tmp_path / "kernel.ptx").write_text(PTX)
    command = ["ptxas", f"-arch={capability}", "-o", str(tmp_path / "kernel.cubin"), str(tmp_path / "kernel.ptx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_a_driver_that_refuses_it(tiny_bundle: Path, tmp_path: Path, flavour: str) -> None:
    """Rows are copied one by one then, after the graph, and a note says so."""
    gpu = fake_gpu(tiny_bundle, tmp_path, variant="primitive-fp32", flavour=flavour)
    gpu.driver.failures["cuModuleLoadData"] = real.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    with Session.open(tiny_bundle, backend="onnxruntime", variant="primitive-fp32", threads=1) as plain:
        expected = conversation(plain)
    with gpu.session() as session:
        require_same(conversation(session), expected)
        assert session.backend_note is not None
        assert re.match(
            r"new rows of caches are copied one by one: cuModuleLoadData failed with CUDA_ERROR_UNSUPPORTED_PTX",
            session.backend_note,
        )
    assert gpu.cuda.violations == []


def test_what_does_not_fit(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    cache, start = backend.allocate((1, 2, 8, 4), "float16"), backend.allocate((1,), "int64")
    for shape, dtype in (((1, 2, 1, 5), "float16"), ((1, 3, 1, 4), "float16"), ((1, 2, 1, 4), "float32")):
        with pytest.raises(RunFailed, match=r"rows of .* do not fit a cache of float16 \(1, 2, 8, 4\)"):
            backend.store_rows([cache], [backend.allocate(shape, dtype)], start)
    step = backend.store_rows([cache], [backend.allocate((1, 2, 1, 4), "float16")], start)
    assert isinstance(step, RowStore)


def test_copies_put_every_entry_where_it_goes(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    cache, new = backend.allocate((3, 2, 8, 4), "float16"), backend.allocate((3, 2, 1, 4), "float16")
    start = backend.allocate((3,), "int64")
    copies = RowCopies([cache], [new], start)
    expected = np.zeros(cache.shape, np.float16)
    for starts in ([2, 0, 5], [3, 1, 6]):
        fresh = np.arange(24, dtype=np.float16).reshape(new.shape) + starts[0]
        start.write(np.array(starts))
        new.write(fresh)
        copies()
        for entry, row in enumerate(starts):
            expected[entry, :, row : row + 1] = fresh[entry]
    np.testing.assert_array_equal(cache.read(), expected)
    assert gpu.cuda.violations == []
