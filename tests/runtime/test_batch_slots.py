"""Requests side by side in the slots of a batch: a prefix computed once serves them all, and none sees another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from sdrpn.runtime.backends.runner import Backend, Runner
from sdrpn.runtime.batch_slots import BatchSlots
from tests.runtime.gpu import fake_gpu
from tests.tolerances import CODES_HIDDEN_ABS

ROWS, PREFIX, WIDTH = 128, 5, 64
RNG = np.random.default_rng(0)
PREFIX_ROWS = RNG.standard_normal((PREFIX, WIDTH)).astype(np.float32)
QUESTIONS = [RNG.standard_normal((length, WIDTH)).astype(np.float32) for length in (3, 6)]
NEXT = RNG.standard_normal((2, 1, WIDTH)).astype(np.float32)


@pytest.fixture(params=["onnxruntime", "tensorrt"])
def trunk(request: pytest.FixtureRequest, tmp_path: Path, variant: str) -> tuple[Backend, Runner]:
    """The trunk on ONNX Runtime, and as an engine on a GPU that is not there."""
    backend: Backend
    source = request.getfixturevalue("coded_bundle" if "-kv-" in variant else "tiny_bundle")
    if request.param == "onnxruntime":
        bundle, backend = open_bundle(source), OnnxRuntimeBackend(threads=1)
        graph = bundle.variant(variant).graphs["trunk"]
        return backend, backend.load(graph, bundle.file(graph.file))
    gpu = fake_gpu(source, tmp_path, variant=variant, max_batch=2)
    backend = gpu.backend()
    return backend, backend.load(gpu.bundle.variant(variant).graphs["trunk"], gpu.engine("trunk"))


@pytest.fixture(params=["fused-fp32", "primitive-fp32", "primitive-fp32-kv-int8"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(
    trunk: tuple[Backend, Runner], slots: BatchSlots, first: int, rows: np.ndarray, starts: list[int]
) -> np.ndarray:
    """rows (B,S,D) into slots first..first+B-1, each behind its own start -> taps (B,S,D)."""
    backend, runner = trunk
    batch, length, _ = rows.shape
    caches = slots.caches(first, first + batch)
    values = {
        "inputs_embeds": rows,
        "position_ids": np.stack([np.arange(start, start + length) for start in starts]),
        "write_index": np.array(starts),
    }
    feeds: dict[str, Any] = {}
    for name, value in values.items():
        feeds[name] = backend.allocate(value.shape, runner.inputs[name].dtype, for_host=True)
        feeds[name].write(value)
    tap = backend.allocate(rows.shape, "float32", for_host=True)
    new_rows = None
    outputs = caches.as_outputs()
    if not caches.in_place:
        shapes = {name: buffer.shape for name, buffer in caches.buffers.items()}
        new_rows = {
            f"{name}_rows": backend.allocate((batch, shapes[name][1], length, shapes[name][3]), tensor.storage)
            for name, tensor in caches.inputs.items()
        }
        outputs = new_rows
    runner.run(feeds | caches.buffers, {"tap": tap} | outputs)
    for index, start in enumerate(starts if new_rows else ()):
        one = {name: buffer.entries(index, index + 1) for name, buffer in (new_rows or {}).items()}
        slots.caches(first + index, first + index + 1).store(one, start)
    return np.array(tap.read())


def alone(trunk: tuple[Backend, Runner], which: int) -> list[np.ndarray]:
    """One request by itself, computed in one piece, and its next token."""
    slots = BatchSlots(trunk[0], trunk[1], 1, ROWS)
    rows = np.concatenate([PREFIX_ROWS, QUESTIONS[which]])[None]
    return [run(trunk, slots, 0, rows, [0])[0, PREFIX:], run(trunk, slots, 0, NEXT[which][None], [rows.shape[1]])[0]]


def tolerance(variant: str) -> float:
    return CODES_HIDDEN_ABS if "-kv-" in variant else 1e-5


def test_a_prefix_is_computed_once_and_decoded_together(trunk: tuple[Backend, Runner], variant: str) -> None:
    slots = BatchSlots(trunk[0], trunk[1], 2, ROWS)
    addresses = [buffer.pointer for buffer in slots.caches(0, 2).buffers.values()]  # type: ignore[attr-defined]
    run(trunk, slots, 0, PREFIX_ROWS[None], [0])
    prefix = slots.snapshot(0, PREFIX)
    slots.restore(prefix, 1)
    taps = [run(trunk, slots, which, QUESTIONS[which][None], [PREFIX])[0] for which in (0, 1)]
    together = run(trunk, slots, 0, NEXT, [PREFIX + len(question) for question in QUESTIONS])
    for which in (0, 1):
        question, token = alone(trunk, which)
        np.testing.assert_allclose(taps[which], question, atol=tolerance(variant))
        np.testing.assert_allclose(together[which], token, atol=tolerance(variant))
    assert [buffer.pointer for buffer in slots.caches(0, 2).buffers.values()] == addresses  # type: ignore[attr-defined]


def test_restoring_makes_a_slot_new_again(trunk: tuple[Backend, Runner]) -> None:
    slots = BatchSlots(trunk[0], trunk[1], 2, ROWS)
    run(trunk, slots, 1, PREFIX_ROWS[None], [0])
    prefix = slots.snapshot(1, PREFIX)
    first = run(trunk, slots, 1, QUESTIONS[0][None], [PREFIX])
    run(trunk, slots, 1, QUESTIONS[1][None], [0])  # another request overwrites the prefix
    slots.restore(prefix, 1)
    np.testing.assert_allclose(run(trunk, slots, 1, QUESTIONS[0][None], [PREFIX]), first, atol=1e-6)


@pytest.mark.parametrize("variant", ["fused-fp32"])
def test_slots_that_are_not_there(trunk: tuple[Backend, Runner], variant: str) -> None:
    slots = BatchSlots(trunk[0], trunk[1], 2, ROWS)
    for use in (lambda: slots.caches(1, 3), lambda: slots.snapshot(2, 1), lambda: slots.caches(1, 1)):
        with pytest.raises(RunFailed, match=r"slots \d to \d were asked for; there are 0 to 1"):
            use()
    with pytest.raises(RunFailed, match="a snapshot of 129 rows; expected 1 to 128"):
        slots.snapshot(0, 129)


def test_an_engine_takes_caches_of_one_length(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    backend = gpu.backend()
    runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["trunk"], gpu.engine("trunk"))
    with pytest.raises(RunFailed, match="caches of 64 rows were asked for; the engine was built for 128"):
        BatchSlots(backend, runner, 1, 64)
