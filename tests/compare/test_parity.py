"""What is measured of a model, and what becomes of many checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.tolerances import TOLERANCES
from sdrpn.checkpoint import open_checkpoint
from sdrpn.compare.answers import FoundAnswer, TrialQuestion, trial_questions
from sdrpn.compare.graphs import Check
from sdrpn.compare.parity import answer_parity, gates, graph_parity, peak_checks, recorded_peaks
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.layers import Attention, rotary, rotate
from sdrpn.workflows.comparison import GraphRuns, Steps


@pytest.fixture
def model(tiny_checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(tiny_checkpoint) as source:
        return model_from_checkpoint(source)


def run_trunk(model: SdRpnModel) -> dict[str, float]:
    with recorded_peaks(model) as peaks:
        model.trunk(model.embed(torch.arange(5)[None]), torch.arange(5)[None])
    return peaks


class TestMaps:
    """The worst of all questions, of both figures."""

    def found(self, model: SdRpnModel, noise: float) -> dict[str, Check]:
        rng = np.random.default_rng(0)

        def answer(question: TrialQuestion) -> FoundAnswer:
            found = question.reference(model)
            logits = found.roi_logits
            if logits is not None:
                logits = logits + noise * rng.standard_normal(logits.shape).astype(np.float32)
            return FoundAnswer(found.token_ids, logits, found.decision)

        questions = trial_questions(model.spec)[:3]
        checks = answer_parity(model, questions, answer, variant="v", precision="fp16")
        return {check.kind: check for check in checks}

    def test_a_trained_rpn_has_a_gate_on_both(self, model: SdRpnModel) -> None:
        model.rpn_trained = True
        limits, found = TOLERANCES["fp16"], self.found(model, 0.0)
        assert found["roi correlation"].found == pytest.approx(1.0, abs=1e-12)
        assert found["roi correlation"].limit == limits.roi_correlation
        assert {gate.kind for gate in gates(found.values())} >= {"roi cosine", "roi correlation"}
        noisy = self.found(model, 0.05)["roi correlation"]
        assert not noisy.ok
        (gate,) = (gate for gate in gates([noisy]) if gate.kind == "roi correlation")
        assert gate.text.endswith(f", at least {limits.roi_correlation:g}")

    def test_a_random_one_is_told_why_it_has_none(self, model: SdRpnModel) -> None:
        found = self.found(model, 0.05)
        check = found["roi correlation"]
        assert check.ok
        assert check.limit is None
        assert check.note.startswith("at worst 0.")
        assert "no gate: the RPN's weights are random" in check.note
        assert "roi correlation" not in {gate.kind for gate in gates(found.values())}


class TestPeaks:
    def test_what_goes_in_and_out_of_every_product(self, model: SdRpnModel) -> None:
        peaks = run_trunk(model)
        products = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
        assert peaks.keys() == {
            *(f"trunk.layers.{layer}.{name} {end}" for layer in range(2) for name in products for end in ("in", "out")),
            *(f"trunk.layers.{layer}.attention scores" for layer in range(2)),
        }
        assert run_trunk(model) == peaks
        model.trunk(model.embed(torch.arange(9)[None]), torch.arange(9)[None])
        assert len(peaks) == 30  # nothing is recorded after the block

    @pytest.mark.parametrize("kv_heads", [4, 2])
    def test_scores_of_attention(self, tiny_spec: ModelSpec, kv_heads: int) -> None:
        """Also where query heads share keys."""
        llm = dataclasses.replace(tiny_spec.llm, kv_heads=kv_heads)
        attention = Attention(llm)
        x, positions = torch.randn(1, 5, llm.width), torch.arange(5)[None]
        with torch.inference_mode():
            cos, sin = rotary(llm, positions)
            query, key = (rotate(attention.split_heads(part(x)), cos, sin) for part in (attention.q, attention.k))
            scores = query @ key.repeat_interleave(llm.heads // kv_heads, dim=1).transpose(2, 3) / llm.head_dim**0.5
        with recorded_peaks(attention) as peaks:  # type: ignore[arg-type]
            attention(x, positions)
        assert peaks[" scores"] == pytest.approx(float(scores.abs().max()))

    def test_scores_beside_which_a_mask_would_not_be_one(self, tiny_bundle: Path) -> None:
        """The dialect `primitive` adds -1e4 to what is masked."""
        bundle, peaks = (
            open_bundle(tiny_bundle),
            {"trunk.layers.0.attention scores": 6e3, "vision.layers.0 scores": 6e3},
        )
        failed = {}
        for dialect in ("fused", "primitive"):
            variant = dataclasses.replace(bundle.variant(f"{dialect}-fp32"), precision="fp16")
            failed[dialect] = [(check.tensor, check.limit) for check in peak_checks(variant, peaks) if not check.ok]
        assert failed == {"fused": [], "primitive": [("trunk.layers.0.attention scores", 4_990)]}

    def test_what_computes_in_float32_holds_everything(self, tiny_bundle: Path) -> None:
        variant = open_bundle(tiny_bundle).variant("fused-fp32")
        for_cpu = dataclasses.replace(variant, name="fused-int8-cpu", precision="int8")
        assert for_cpu.for_cpu
        assert list(peak_checks(for_cpu, {"tail.head out": 1e6})) == []

    @pytest.mark.parametrize("dialect", ["fused", "primitive"])
    def test_keys_values_and_scores_of_the_rpn(
        self, model: SdRpnModel, tiny_checkpoint: Path, tmp_path: Path, dialect: str
    ) -> None:
        """Outputs that went through fp16."""
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions("fp16", dialect))  # type: ignore[arg-type]
        bundle = open_bundle(tmp_path / "bundle")
        variant = bundle.variant(f"{dialect}-fp16")

        def peaks() -> dict[str, Check]:
            with GraphRuns(bundle, variant.name, Steps(lambda done, total: None, 0, 1)) as graphs:
                checks = list(graph_parity(model, variant, graphs.run, max_context=bundle.manifest.max_context))
            checks.sort(key=lambda check: check.found if isinstance(check.found, float) else 0)
            return {check.tensor.partition(",")[0]: check for check in checks if check.kind == "peak"}

        suffix, scores = ("_out", {"scores"}) if dialect == "fused" else ("_rows", {"scores", "new_scores"})
        before = peaks()
        assert {f"{kind}_cache.{layer}{suffix}" for kind in ("key", "value") for layer in range(4)} < before.keys()
        assert scores < before.keys()
        assert "tap" not in before
        assert all(check.ok for check in before.values())
        loud = f"value_cache.1{suffix}"
        with torch.no_grad():  # the graph has other weights by then; only the peaks count here
            weight = model.trunk.get_submodule("layers.1.attention.v").get_parameter("weight")
            weight.mul_(45_000 / float(before[loud].found))
        failed = [(check.graph, name, check.limit) for name, check in peaks().items() if not check.ok]
        assert failed == [("trunk", loud, 30_000)]

    def test_what_fp16_cannot_hold_is_named(self, model: SdRpnModel, tiny_bundle: Path) -> None:
        with torch.no_grad():
            model.trunk.get_submodule("layers.1.mlp.up").get_parameter("weight").mul_(1e6)
        variant = open_bundle(tiny_bundle).variant("fused-fp32")
        assert list(peak_checks(variant, run_trunk(model))) == []  # float32 holds it
        checks = list(peak_checks(dataclasses.replace(variant, precision="fp16"), run_trunk(model)))
        failed = [check.tensor for check in checks if not check.ok]
        assert failed == [f"trunk.layers.1.mlp.{name}" for name in ("up out", "down in", "down out")]
        assert all(check.limit == 30_000 for check in checks)

    def test_no_finite_number(self, model: SdRpnModel, tiny_bundle: Path) -> None:
        variant = dataclasses.replace(open_bundle(tiny_bundle).variant("fused-fp32"), precision="fp16")
        (check,) = peak_checks(variant, {"tail.head out": float("inf")})
        assert (check.ok, check.graph, check.found) == (False, "tail", "not a finite number")


class TestGates:
    def test_the_worst_of_each_kind(self) -> None:
        checks = [
            Check("v", "trunk", "values", "a", 0.1, limit=0.5),
            Check("v", "trunk", "values", "b", 0.3, limit=0.5),
            Check("v", "trunk", "cosine", "a", 0.99, limit=0.9),
            Check("v", "trunk", "cosine", "b", 0.95, limit=0.9),
            Check("v", "answer", "tokens", "c", "not asked", note="too long"),
        ]
        assert [(gate.kind, gate.tensor, gate.checks, gate.ok) for gate in gates(checks)] == [
            ("values", "b", 2, True),
            ("cosine", "b", 2, True),
        ]

    def test_what_failed_is_worse_than_any_number(self) -> None:
        checks = [
            Check("v", "rpn", "values", "a", 0.6, limit=0.5, ok=False),
            Check("v", "rpn", "values", "b", "not a finite number", limit=0.5, ok=False),
            Check("v", "rpn", "values", "c", 0.1, limit=0.5),
        ]
        (gate,) = gates(checks)
        assert (gate.tensor, gate.found, gate.ok) == ("b", "not a finite number", False)

    def test_a_graph_that_did_not_run(self) -> None:
        (gate,) = gates([Check("v", "tail", "values", "prefill", "did not run: why", "arrays", ok=False)])
        assert (gate.found, gate.ok) == ("did not run: why", False)
