"""`sdrpn verify --exact`: what passes, what fails and is named, and what is refused before the work starts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sdrpn.bundle.bundle import MANIFEST_NAME, file_digest, open_bundle
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host import machine
from sdrpn.host.machine import read_machine
from sdrpn.method.spec import ModelSpec
from tests.cli.command import Command, Outcome, refusal
from tests.damage import copied, edit_json, flip_byte


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return copied(tiny_bundle, tmp_path)


def accept(bundle: Path, file: str) -> None:
    """Make the manifest say what a changed file is now."""

    def change(manifest: dict[str, Any]) -> None:
        size_bytes = (bundle / file).stat().st_size
        manifest["files"][file] = {"size_bytes": size_bytes, "sha256": file_digest(bundle / file)}

    edit_json(bundle / MANIFEST_NAME, change)


def weight_file(bundle: Path, graph: str) -> str:
    """The file with the matrices of a graph of the fused-fp32 variant."""
    files = open_bundle(bundle).variant("fused-fp32").graphs[graph].weights
    (file,) = [name for name in files if graph in name and "norm" not in name]
    return file


def negate_first_weight(bundle: Path, file: str) -> None:
    """Change the byte with the sign."""
    path = bundle / file
    content = bytearray(path.read_bytes())
    content[3] ^= 0x80
    path.write_bytes(content)
    accept(bundle, file)


def failures(outcome: Outcome) -> list[dict[str, Any]]:
    """The checks that failed, from the JSON of a comparison that found something."""
    assert outcome.code == 1
    assert outcome.err.startswith("sdrpn: error: ")
    assert outcome.err.count("\n") == 1
    report = json.loads(outcome.out)
    assert report["ok"] is False
    return [check for check in report["checks"] if not check["ok"]]


def compare(sdrpn: Command, bundle: Path, checkpoint: Path, *arguments: str) -> Outcome:
    return sdrpn("verify", "--exact", bundle, "--checkpoint", checkpoint, "--variant", "fused-fp32", *arguments)


class TestPasses:
    def test_both_dialects_and_fp16(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        export_bundle(tiny_checkpoint, bundle, ExportOptions(precision="fp16"))
        report = sdrpn("verify", "--exact", bundle, "--checkpoint", tiny_checkpoint, "--json").json()
        assert report["ok"] is True
        assert (report["bundle"], report["checkpoint"]) == (str(bundle), str(tiny_checkpoint))
        done = {(check["variant"], check["graph"]) for check in report["checks"]}
        variants = ("fused-fp32", "primitive-fp32", "fused-fp16")
        parts = ("vision", "trunk", "rpn", "tail", "embedding", "rotary", "answer")
        assert done == {("all", "bundle"), *((variant, part) for variant in variants for part in parts)}

    def test_the_table(self, sdrpn: Command, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
        outcome = compare(sdrpn, tiny_bundle, tiny_checkpoint)
        assert (outcome.code, outcome.err) == (0, "")
        header, *rows, last = outcome.out.splitlines()
        assert header.split() == ["variant", "graph", "check", "result"]
        assert [row.split()[:3] for row in rows[1:5]] == [
            ["fused-fp32", "vision", kind] for kind in ("names", "axes", "shapes", "values")
        ]
        assert "at most 0.0005" in rows[4]
        assert rows[-1].split()[:4] == ["fused-fp32", "answer", "tokens", "ok"]
        passed, of, total, *words = last.split()
        assert (passed, of, words) == (total, "of", ["checks", "passed"])

    def test_without_an_rpn(self, sdrpn: Command, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        checkpoint, bundle = tmp_path / "plain", tmp_path / "bundle"
        write_random_checkpoint(checkpoint, dataclasses.replace(tiny_spec, rpn=None), layout="llava")
        export_bundle(checkpoint, bundle)
        report = sdrpn("verify", "--exact", bundle, "--checkpoint", checkpoint, "--json").json()
        assert {check["kind"] for check in report["checks"] if check["graph"] == "answer"} == {"tokens"}
        assert "rpn" not in {check["graph"] for check in report["checks"]}

    def test_a_context_too_short_for_answers_is_noted(
        self, sdrpn: Command, tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path
    ) -> None:
        bundle = tmp_path / "bundle"
        export_bundle(tiny_checkpoint, bundle, ExportOptions(max_context=tiny_spec.vision.image_tokens + 1))
        outcome = compare(sdrpn, bundle, tiny_checkpoint)
        assert outcome.code == 0
        assert "fused-fp32 answer, tokens of image 1, plain: 30 prompt tokens + 8 new tokens need 38" in outcome.out


class TestFails:
    @pytest.mark.parametrize("graph", ["vision", "trunk", "rpn", "tail"])
    def test_a_changed_weight(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path, graph: str) -> None:
        negate_first_weight(bundle, weight_file(bundle, graph))
        wrong = failures(compare(sdrpn, bundle, tiny_checkpoint, "--json"))
        assert (wrong[0]["graph"], wrong[0]["kind"]) == (graph, "values")
        assert {check["graph"] for check in wrong} <= {graph, "answer"}

    def test_a_changed_embedding(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        negate_first_weight(bundle, open_bundle(bundle).variant("fused-fp32").embedding)
        outcome = compare(sdrpn, bundle, tiny_checkpoint)
        assert outcome.code == 1
        assert "fused-fp32 embedding, values of table: " in outcome.err
        first = next(line for line in outcome.out.splitlines() if "FAILED" in line)
        assert first.split()[:4] == ["fused-fp32", "embedding", "values", "FAILED"]

    def test_an_output_renamed_in_the_manifest(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        def rename(manifest: dict[str, Any]) -> None:
            (logits,) = [
                tensor
                for tensor in manifest["variants"]["fused-fp32"]["graphs"]["tail"]["outputs"]
                if tensor["name"] == "logits"
            ]
            logits["name"] = "scores"

        edit_json(bundle / MANIFEST_NAME, rename)
        line = refusal(compare(sdrpn, bundle, tiny_checkpoint))
        assert "variant 'fused-fp32', graph 'tail': output \"scores\" is unknown; export the bundle again" in line

    def test_an_output_renamed_in_the_graph(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        file = open_bundle(bundle).variant("fused-fp32").graphs["trunk"].file
        model = onnx.load(str(bundle / file), load_external_data=False)
        for node in model.graph.node:
            node.input[:] = ["renamed" if name == "tap" else name for name in node.input]
            node.output[:] = ["renamed" if name == "tap" else name for name in node.output]
        for output in model.graph.output:
            output.name = "renamed" if output.name == "tap" else output.name
        (bundle / file).unlink()
        onnx.save(model, str(bundle / file))
        accept(bundle, file)
        (wrong,) = failures(compare(sdrpn, bundle, tiny_checkpoint, "--json"))
        assert (wrong["graph"], wrong["kind"], wrong["tensor"]) == ("trunk", "names", "outputs in the file")

    def test_another_checkpoint(self, sdrpn: Command, tiny_bundle: Path, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "other", tiny_spec, seed=1)
        outcome = compare(sdrpn, tiny_bundle, tmp_path / "other", "--json")
        wrong = failures(outcome)
        assert (wrong[0]["kind"], wrong[0]["tensor"]) == ("checkpoint", "digest")
        assert wrong[0]["found"] == open_bundle(tiny_bundle).manifest.source["sha256"]
        assert len(wrong[0]["expected"]) == 64
        assert {"vision", "trunk", "rpn", "tail", "embedding"} <= {check["graph"] for check in wrong}
        assert "with the same parts (--checkpoint, --vision-tower, --rpn, --base, --projector)" in outcome.err

    def test_a_checkpoint_of_other_sizes(
        self, sdrpn: Command, tiny_bundle: Path, tiny_spec: ModelSpec, tmp_path: Path
    ) -> None:
        llm = dataclasses.replace(tiny_spec.llm, mlp_width=80, rms_norm_eps=1e-6, vocabulary=120)
        write_random_checkpoint(tmp_path / "other", dataclasses.replace(tiny_spec, llm=llm))
        wrong = failures(compare(sdrpn, tiny_bundle, tmp_path / "other", "--json"))
        assert (wrong[1]["kind"], wrong[1]["tensor"]) == ("checkpoint", "model description")
        assert wrong[1]["found"] == "llm.mlp_width 96, llm.rms_norm_eps 1e-05, llm.vocabulary 96"
        assert wrong[1]["expected"] == "llm.mlp_width 80, llm.rms_norm_eps 1e-06, llm.vocabulary 120"
        assert ("tail", "axes") in {(check["graph"], check["kind"]) for check in wrong}


class TestRefused:
    def test_a_changed_file(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        flip_byte(bundle / weight_file(bundle, "trunk"))
        assert "was changed: its SHA-256 is" in refusal(compare(sdrpn, bundle, tiny_checkpoint))

    def test_a_graph_that_is_none(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        file = open_bundle(bundle).variant("fused-fp32").graphs["rpn"].file
        (bundle / file).write_bytes(b"not ONNX")
        accept(bundle, file)
        assert "rpn.fused-fp32.onnx cannot be read as ONNX" in refusal(compare(sdrpn, bundle, tiny_checkpoint))

    def test_an_unknown_variant(self, sdrpn: Command, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
        outcome = sdrpn("verify", "--exact", tiny_bundle, "--checkpoint", tiny_checkpoint, "--variant", "fused-int4")
        assert "has no variant 'fused-int4'; it has fused-fp32, primitive-fp32" in refusal(outcome)

    def test_a_missing_checkpoint(self, sdrpn: Command, tiny_bundle: Path, tmp_path: Path) -> None:
        assert "is not a folder" in refusal(compare(sdrpn, tiny_bundle, tmp_path / "none"))

    @pytest.mark.parametrize(("module", "name"), [("torch", "PyTorch"), ("onnx", "onnx")])
    def test_a_missing_library(
        self,
        sdrpn: Command,
        tiny_bundle: Path,
        tiny_checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
        module: str,
        name: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        assert refusal(compare(sdrpn, tiny_bundle, tiny_checkpoint)) == (
            f"verify runs the checkpoint in PyTorch, and {name} is not installed; pip install 'sdrpn[train]'"
        )

    def test_too_little_memory(
        self, sdrpn: Command, tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = dataclasses.replace(read_machine(), memory_available_bytes=100_000)
        monkeypatch.setattr(machine, "read_machine", lambda: small)
        message = refusal(compare(sdrpn, tiny_bundle, tiny_checkpoint), code=1)
        assert "for the checkpoint in float32 and" in message
        assert message.endswith("or name the smallest variant (--variant)")

    def test_engines_of_a_target(self, sdrpn: Command, tiny_bundle: Path) -> None:
        message = refusal(sdrpn("verify", "--exact", tiny_bundle, "--target", "rtx-4090"))
        assert message.endswith("leave out exact, or the target (--exact, --target)")


class TestFormerName:
    """`sdrpn compare`, for one more version."""

    def test_it_says_how_it_is_called_now(self, sdrpn: Command, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
        former = sdrpn("compare", tiny_bundle, "--checkpoint", tiny_checkpoint, "--variant", "fused-fp32", "--json")
        assert former.err.startswith("sdrpn: warning: `sdrpn compare` is called `sdrpn verify --exact` now")
        assert former.err.count("\n") == 1
        assert (former.code, former.out) == (0, compare(sdrpn, tiny_bundle, tiny_checkpoint, "--json").out)

    def test_it_fails_alike(self, sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
        negate_first_weight(bundle, weight_file(bundle, "rpn"))
        outcome = sdrpn("compare", bundle, "--checkpoint", tiny_checkpoint, "--variant", "fused-fp32")
        assert outcome.code == 1
        assert "checks failed, first fused-fp32 rpn, values of " in outcome.err


def test_the_first_weight_is_not_zero(tiny_bundle: Path) -> None:
    """Else to negate it would change nothing."""
    for graph in ("vision", "trunk", "rpn", "tail"):
        assert np.fromfile(tiny_bundle / weight_file(tiny_bundle, graph), np.float32, count=1)[0] != 0
