"""Engines that decode several questions at once: slots are entries of a batch, and answers are those of each alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import driver as real

from sdrpn.errors import BadInput
from sdrpn.runtime import Session
from tests.runtime.asking import ask, no_box
from tests.runtime.fake_cuda import Operation
from tests.runtime.fake_tensorrt import Execution
from tests.runtime.gpu import FakeGpu, fake_gpu, opening
from tests.runtime.together import alone, require_equal, together
from tests.tolerances import BATCH_CODES_LOGITS_ABS, BATCH_LOGITS_ABS

MOST = 4
NUMBERS = range(7)
VARIANTS = ["fused-fp32", "primitive-fp32", "primitive-fp32-kv-int8"]


@pytest.fixture(params=VARIANTS)
def source(request: pytest.FixtureRequest) -> tuple[Path, str]:
    name = "coded_bundle" if "-kv-" in request.param else "tiny_bundle"
    return request.getfixturevalue(name), request.param


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def gpu(request: pytest.FixtureRequest, source: tuple[Path, str], tmp_path: Path) -> FakeGpu:
    return fake_gpu(source[0], tmp_path, variant=source[1], flavour=request.param, max_batch=MOST)


def decode_steps(gpu: FakeGpu, graph: str = "trunk") -> list[Execution]:
    """Enqueued or captured."""
    return [step for step in gpu.trt.executions if step.graph == graph and step.shapes["row_index"][1] == 1]


def caches_begin(session: Session, graph: str, name: str) -> tuple[int, int]:
    """The address of slot 0, and bytes from one slot to the next."""
    buffer = session._decoder.slots.caches[graph].buffers[name]
    return buffer.pointer, buffer.size_bytes // buffer.shape[0]  # type: ignore[attr-defined]


def test_answers_are_those_of_each_alone(gpu: FakeGpu, source: tuple[Path, str]) -> None:
    path, variant = source
    tolerance = BATCH_CODES_LOGITS_ABS if "-kv-" in variant else BATCH_LOGITS_ABS
    with Session.open(path, backend="onnxruntime", variant=variant, threads=1) as plain:
        expected = alone(plain, NUMBERS)
    with gpu.session(max_batch=MOST) as session:
        for found, each in zip(together(session, NUMBERS), expected, strict=True):
            require_equal(found, each, tolerance)
    assert {step.shapes["row_index"][0] for step in decode_steps(gpu)} >= {MOST}
    assert gpu.cuda.violations == []


def test_slots_are_entries_of_the_bound_caches(gpu: FakeGpu) -> None:
    with gpu.session(max_batch=MOST) as session:
        together(session, NUMBERS)
        name = next(name for name in gpu.trt.executions[-1].addresses if name.startswith("key_cache"))
        for graph in ("trunk", "tail"):
            name = next(name for name in session._decoder.slots.caches[graph].buffers if name.startswith("key_cache"))
            begin, entry = caches_begin(session, graph, name)
            runs = [step for step in gpu.trt.executions if step.graph == graph]
            places = {((step.addresses[name] - begin) / entry, step.shapes[name][0]) for step in runs}
            assert places <= {(start, count) for start in range(MOST) for count in range(1, MOST - start + 1)}
            assert (0, MOST) in places
            prefills = {place for step in runs if step.shapes["row_index"][1] > 1 for place in [step.shapes[name][0]]}
            assert prefills == {1}


def test_each_range_of_slots_is_captured_once(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, max_batch=MOST)
    with gpu.session(max_batch=MOST) as session:
        together(session, NUMBERS)
        ranges = len(session._decoder._steps)
        calls = gpu.cuda.names()
        assert 2 <= calls.count("cudaGraphInstantiate") <= ranges
        together(session, NUMBERS)
        assert gpu.cuda.names().count("cudaGraphInstantiate") <= len(session._decoder._steps)
    assert gpu.cuda.violations == []


def test_rows_of_all_slots_are_stored_by_one_launch(tiny_bundle: Path, tmp_path: Path) -> None:
    """One run of trunk and of tail per step, however many slots it is for."""
    gpu = fake_gpu(tiny_bundle, tmp_path, variant="primitive-fp32", max_batch=MOST)
    with gpu.session(max_batch=MOST) as session:
        together(session, NUMBERS)
        captured = [_captured_names(graph) for graph in gpu.cuda.graphs.values()]
    assert captured
    assert all(each == {"trunk": 1, "tail": 1, "store rows": 2} for each in captured)


def test_a_driver_without_the_kernel_copies_rows_of_every_slot(tiny_bundle: Path, tmp_path: Path) -> None:
    variant = "primitive-fp32"
    gpu = fake_gpu(tiny_bundle, tmp_path, variant=variant, max_batch=MOST)
    gpu.driver.failures["cuModuleLoadData"] = real.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    with Session.open(tiny_bundle, backend="onnxruntime", variant=variant, threads=1) as plain:
        expected = alone(plain, NUMBERS)
    with gpu.session(max_batch=MOST) as session:
        for found, each in zip(together(session, NUMBERS), expected, strict=True):
            require_equal(found, each, BATCH_LOGITS_ABS)
        assert session.backend_note is not None
        assert session.backend_note.startswith("new rows of caches are copied one by one: ")
    assert gpu.cuda.violations == []


def test_several_contexts(tiny_bundle: Path, tmp_path: Path) -> None:
    """A question that needs the long caches moves those beside it to them, with their rows."""
    variant = "primitive-fp32"
    gpu = fake_gpu(tiny_bundle, tmp_path, variant=variant, shorter_contexts=(32,), max_batch=MOST)
    numbers = (4, 1, 9, 6, 2)  # four that are short, and one that is prefilled when the first of them is over
    with Session.open(tiny_bundle, backend="onnxruntime", variant=variant, threads=1) as plain:
        expected = alone(plain, numbers)
    with gpu.session(max_batch=MOST) as session:
        for found, each in zip(together(session, numbers), expected, strict=True):
            require_equal(found, each, BATCH_LOGITS_ABS)
    lengths = [step.shapes["key_cache.0"][2] for step in decode_steps(gpu)]
    assert set(lengths) == {32, 128}
    assert any(before < after for before, after in pairwise(lengths))
    assert gpu.cuda.violations == []


def test_all_slots_are_there_from_the_first_question(tiny_bundle: Path, tmp_path: Path) -> None:
    """What `plan` and the checks before loading count; nothing is allocated while others answer."""
    gpu = fake_gpu(tiny_bundle, tmp_path, max_batch=MOST)
    with gpu.session(max_batch=MOST) as session:
        ask(session, decide=no_box)
        buffers = session._decoder.slots.caches["trunk"].buffers.values()
        assert {buffer.shape[0] for buffer in buffers} == {MOST}
        pointers = [buffer.pointer for buffer in buffers]  # type: ignore[attr-defined]
        together(session, NUMBERS)
        assert [buffer.pointer for buffer in buffers] == pointers  # type: ignore[attr-defined]


def _captured_names(operations: list[Operation]) -> Counter[str]:
    """What a captured step consists of, besides copies."""
    return Counter(operation.name for operation in operations if operation.name != "copy")


@pytest.fixture
def opened(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """Session.open on a machine that engines of up to MOST questions fit."""
    return opening(fake_gpu(tiny_bundle, tmp_path, max_batch=MOST), monkeypatch)


@pytest.mark.parametrize(("max_batch", "expected"), [(None, MOST), (1, 1), (3, 3)])
def test_as_many_as_they_were_built_for(opened: Callable[..., Session], max_batch: int | None, expected: int) -> None:
    with opened(max_batch=max_batch) as session:
        assert session.backend == "tensorrt"
        assert session._scheduler.max_batch == len(session._decoder.slots.all) == expected


def test_more_than_that_is_refused(opened: Callable[..., Session]) -> None:
    message = (
        r"max_batch is 8; the engines of rtx-4090 decode at most 4 at once\. Ask for at most that, or build "
        r"them again: sdrpn build .* --target rtx-4090 --max-batch 8"
    )
    with pytest.raises(BadInput) as raised:
        opened(max_batch=8)
    assert re.fullmatch(message, str(raised.value))
    with pytest.raises(BadInput, match="max_batch is 0; expected a number of questions, at least 1"):
        opened(max_batch=0)


def test_an_overflow_of_one_spoils_no_other(tiny_bundle: Path, tmp_path: Path) -> None:
    """The slot whose rows are not finite is wiped, and the next question in it is answered."""
    gpu = fake_gpu(tiny_bundle, tmp_path, max_batch=MOST)
    with gpu.session(max_batch=MOST) as session:
        expected = together(session, NUMBERS)
        slot = session._decoder.slots.all[1]
        session._decoder.slots.taps_of(slot, 0, 2).write(np.full((1, 2, 64), np.nan, np.float32))
        for name in session._decoder.slots.caches:
            for buffer in session._decoder.slots.caches_of(name, 1, 2).buffers.values():
                buffer.write(np.full(buffer.shape, np.nan, buffer.dtype))
        session._decoder.slots.wipe(slot)
        for found, each in zip(together(session, NUMBERS), expected, strict=True):
            require_equal(found, each, BATCH_LOGITS_ABS)
    assert gpu.cuda.violations == []
