"""Decode steps in a model of their own: they equal the library's, whatever the caches, where they are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.bundle.bundle import GraphInfo, open_bundle
from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.runtime import Session
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.info import OpenOptions
from sdrpn.runtime.backends.registry import backend_info as info_of
from sdrpn.runtime.backends.runner import Array
from tests.pictures import photo
from tests.runtime.backends.test_openvino import QUESTION, feeds_of
from tests.tolerances import PARITY_FP16_ABS, SAME_ROUNDING_SHARE

openvino = pytest.importorskip("openvino")
ops = pytest.importorskip("openvino.opset15")
steps_module = pytest.importorskip("sdrpn.runtime.backends.openvino_steps")
native = pytest.importorskip("sdrpn._native_steps", exc_type=ImportError)
compiled = pytest.importorskip("sdrpn.runtime.backends.openvino_compiled")
openvino_backend = pytest.importorskip("sdrpn.runtime.backends.openvino")

VARIANTS = ("fused-fp16", "fused-int4", "fused-int4-cpu", "fused-int8-cpu")
HALF_FLOATS = "fused-fp16"


@pytest.fixture(scope="module")
def bundle_dir(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head in fp16 beside codes, and two query heads for each head of keys."""
    folder = tmp_path_factory.mktemp("stepped") / "bundle"
    for precision in ("fp16", "int4", "int8"):
        export_bundle(text_checkpoint, folder, ExportOptions(precision, "fused"))
    return folder


def step(bundle_dir: Path, variant: str, graph: str, batch: int, **options: Any) -> tuple[dict[str, Array], Any]:
    """One row of each sequence behind 70 others: what the graph gives, and its runner."""
    bundle = open_bundle(bundle_dir)
    info: GraphInfo = bundle.variant(variant).graphs[graph]
    backend = info_of("openvino").open(OpenOptions(1, **options))
    runner = backend.load(info, bundle.file(info.file))
    return run_on_arrays(backend, runner, feeds_of(runner, 70, 1, batch, 128)), runner


def used(runner: Any) -> int:
    """Models that were compiled for steps."""
    return len(runner._compiled._step_requests)


def widest(values: Array) -> float:
    return float(np.abs(values.astype(np.float32)).max())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("graph", ["trunk", "tail"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_equals_the_librarys(bundle_dir: Path, variant: str, graph: str, batch: int) -> None:
    """Floats in another order of sums; where activations are rounded, to the same blocks."""
    expected, plain = step(bundle_dir, variant, graph, batch, decode_copy=False)
    found, runner = step(bundle_dir, variant, graph, batch, decode_copy=True)
    assert (used(plain), used(runner)) == (0, 1)
    for name, values in expected.items():
        difference = widest(values.astype(np.float32) - found[name])
        limit = PARITY_FP16_ABS if variant == HALF_FLOATS else SAME_ROUNDING_SHARE * widest(values)
        assert difference <= limit, f"{name} of {graph} differs by {difference:.2e}"


def test_rows_are_put_into_the_caches(bundle_dir: Path) -> None:
    """Where the library puts them: a prefill behind steps computes the same."""
    taps = []
    for decode_copy in (False, True):
        with Session.open(
            bundle_dir, backend="openvino", variant="fused-fp16", threads=1, decode_copy=decode_copy
        ) as session:
            decoder, embedding = session._decoder, session._embedding
            slot = decoder.slots.all[0]
            decoder.slots.reset(slot, 64)
            for position in range(40):  # into a second block of the pages
                decoder.step_one(slot, embedding.rows([5 + position]), position)
            decoder.run_trunk(slot, embedding.rows(list(range(3, 23))), 40)
            taps.append(decoder.run_tail(slot, 40, 60).copy())
    assert widest(taps[0] - taps[1]) <= PARITY_FP16_ABS


def test_coded_caches_stay_with_the_librarys_attention(bundle_dir: Path) -> None:
    logits = []
    for decode_copy in (False, True):
        with Session.open(
            bundle_dir, backend="openvino", variant="fused-int4", threads=1, kv_cache="int8", decode_copy=decode_copy
        ) as session:
            answer = session.answer(photo(), QUESTION, roi=None, max_new_tokens=2, trace=True)
            assert answer.trace is not None
            logits.append(answer.trace.step_logits)
            steps = session._decoder._runners["tail"]._compiled._step_requests  # type: ignore[attr-defined]
            assert ["key_cache.2" in request.inputs for request in steps.values()] == [True] * decode_copy
    expected, found = logits
    np.testing.assert_array_equal(expected[0], found[0])  # of the prefill
    assert widest(expected[1] - found[1]) <= SAME_ROUNDING_SHARE * widest(expected[1])


def test_a_product_of_values_in_a_deep_graph_is_no_matrix() -> None:
    """Its right side depends on an input two thousand nodes before, by both sides of each."""
    rows = ops.parameter([1, 4, 4], np.float32)
    value = rows
    for _ in range(2000):
        value = ops.add(value, value)
    constant = ops.constant(np.ones((4, 4), np.float16))
    narrow = ops.parameter([1, 4, 4], np.float16)
    results = [
        ops.result(ops.matmul(rows, value, False, False)),
        ops.result(ops.matmul(narrow, constant, False, False)),
    ]
    (product,) = steps_module.constant_products(openvino.Model(results, [rows, narrow]))
    assert product.matrix.nbytes == 32


class TestWhere:
    @pytest.mark.parametrize("options", [{"accurate": True}, {"activation_block": 16}], ids=["accurate", "blocks"])
    def test_not_where_activations_are_rounded_otherwise(self, bundle_dir: Path, options: dict[str, Any]) -> None:
        _, runner = step(bundle_dir, "fused-int4-cpu", "trunk", 1, **options)
        assert used(runner) == 0
        with pytest.raises(BadInput, match=f"decode_copy is True, and {next(iter(options))} .*; leave one of them out"):
            step(bundle_dir, "fused-int4-cpu", "trunk", 1, decode_copy=True, **options)

    def test_what_cannot_be_had_is_refused(self, text_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino_backend, "native_module", lambda name: None)
        with pytest.raises(BadInput, match="needs native decode steps, which were not compiled here; leave it out"):
            Session.open(text_bundle, backend="openvino", threads=1, decode_copy=True)
        Session.open(text_bundle, backend="openvino", threads=1, decode_copy=False).close()

    @pytest.mark.parametrize(("raised", "becomes"), [(MemoryError(), RunFailed), (RuntimeError("odd"), BadBundle)])
    def test_what_fails_names_the_graph(
        self, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, becomes: type[Exception]
    ) -> None:
        def fail(*_: Any) -> None:
            raise raised

        monkeypatch.setattr(compiled, "StepModel", fail)
        with pytest.raises(becomes, match=r"cannot load .*trunk"):
            step(bundle_dir, "fused-int4-cpu", "trunk", 1, decode_copy=True)

    def test_not_for_many_sequences(self, bundle_dir: Path) -> None:
        _, runner = step(bundle_dir, "fused-int4-cpu", "trunk", 9, decode_copy=True)
        assert used(runner) == 0

    def test_not_for_a_graph_in_fp32(self, text_bundle: Path) -> None:
        """Its matrices would be there twice, in the form in which the library has them already."""
        _, runner = step(text_bundle, "fused-fp32", "trunk", 1, decode_copy=True)
        assert used(runner) == 0

    @pytest.mark.parametrize("decode_copy", [None, True])
    def test_a_large_graph_has_to_be_asked_for(
        self, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, decode_copy: bool | None
    ) -> None:
        monkeypatch.setattr(openvino_backend, "MOST_COPIED_BYTES", 1000)
        _, runner = step(bundle_dir, "fused-int4-cpu", "trunk", 1, decode_copy=decode_copy)
        assert used(runner) == bool(decode_copy)

    @pytest.mark.parametrize("instructions", ["plain", "avx2"])
    def test_not_unasked_where_the_processor_has_no_fast_ones(
        self, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, instructions: str
    ) -> None:
        monkeypatch.setattr(native, "instructions", lambda: instructions)
        _, runner = step(bundle_dir, "fused-int4-cpu", "trunk", 1)
        assert used(runner) == (instructions != "plain")

    def test_another_library_has_no_copy(self, text_bundle: Path) -> None:
        with pytest.raises(BadInput, match="onnxruntime reads the same matrices in prefills and in decode"):
            Session.open(text_bundle, backend="onnxruntime", decode_copy=True)
        Session.open(text_bundle, backend="onnxruntime", decode_copy=False).close()


def test_what_a_step_reads_is_that_of_its_own_matrices(bundle_dir: Path) -> None:
    """A head in fp16 is read as it is, where the library has it in fp32."""
    sizes = []
    for decode_copy in (False, True):
        with Session.open(
            bundle_dir, backend="openvino", variant="fused-int4", threads=1, decode_copy=decode_copy
        ) as session:
            sizes.append([session.step_bytes(context) or 0 for context in (0, 1)])
            own = [
                session._decoder._runners[name]._compiled.step_bytes  # type: ignore[attr-defined]
                for name in ("trunk", "tail")
            ]
    (library, _), (steps, behind_a_row) = sizes
    assert steps == sum(own) < library
    assert behind_a_row > steps


def test_answers_are_the_same(bundle_dir: Path) -> None:
    """All tokens of a greedy answer, in fp16."""
    found = []
    for decode_copy in (False, True):
        with Session.open(
            bundle_dir, backend="openvino", variant="fused-fp16", threads=1, decode_copy=decode_copy
        ) as session:
            found.append(session.answer(photo(), QUESTION, max_new_tokens=8).token_ids)
    assert found[0] == found[1]
