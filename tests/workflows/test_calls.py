"""The calls of a program: what they return and report, and how they refuse, in words that name no options."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
from PIL import Image

import sdrpn
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.workflows.benchmark import BenchRequest
from sdrpn.workflows.graph_optimization import OptimizeRequest
from sdrpn.workflows.memory_plan import PlanRequest
from sdrpn.workflows.question import NO_RPN, AskRequest, ask_question
from tests.pictures import photo
from tests.sources import ROOT

WORKFLOWS = sorted((ROOT / "sdrpn" / "workflows").glob("*.py"))


class TestPlanMemory:
    def test_this_machine(self) -> None:
        plan = sdrpn.plan_memory("demo", contexts=(64,))
        assert (plan.bundle, plan.context, plan.step_bytes) == ("demo", 64, {})
        assert plan.largest_context == plan.context_limit
        assert plan.needs.total_bytes == sum(size for _, size in plan.needs.parts)

    def test_contexts_in_any_order(self) -> None:
        plan = sdrpn.plan_memory("demo", target="rtx-4090", variant="fused-int8", contexts=(256, 64))
        assert (plan.contexts, plan.context, list(plan.step_bytes)) == ((64, 256), 256, [64, 256])
        assert plan.step_bytes[64] < plan.step_bytes[256]

    def test_a_context_that_the_bundle_does_not_have(self) -> None:
        with pytest.raises(sdrpn.ContextTooLong, match=r"a context of 9999 is above the bundle's \d+; name a"):
            sdrpn.plan_memory("demo", contexts=(9999,))

    def test_numbers_below_one(self) -> None:
        with pytest.raises(sdrpn.BadInput, match=r"batch is 0, contexts are \(\); expected numbers of at least 1"):
            PlanRequest("demo", batch=0)


class TestOptimizeBundle:
    def test_progress_and_what_is_returned(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions())
        told = list[tuple[int, int]]()
        saved = sdrpn.optimize_bundle(
            tmp_path / "bundle", threads=1, progress=lambda done, total: told.append((done, total))
        )
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert saved.folder.is_dir()
        assert saved.size_bytes == sum(path.stat().st_size for path in saved.folder.iterdir() if path.suffix != ".json")
        assert saved.to_json()["attention"] == saved.manifest.attention == "group-query"

    def test_an_attention_that_there_is_not(self) -> None:
        with pytest.raises(sdrpn.BadInput, match="attention is 'flash'; expected group-query or standard"):
            OptimizeRequest("bundle", attention="flash")

    def test_the_shipped_bundle(self) -> None:
        with pytest.raises(sdrpn.BadInput, match="nothing is written there; optimise a copy of it"):
            sdrpn.optimize_bundle("demo")


class TestBenchBundle:
    def test_two_sides_in_turns(self, tiny_bundle: Path) -> None:
        other = sdrpn.BenchBundle(tiny_bundle, "primitive-fp32")
        told = list[tuple[int, int]]()
        report = sdrpn.bench_bundle(
            tiny_bundle,
            variant="fused-fp32",
            others=(other,),
            cases=("plain",),
            runs=1,
            new_tokens=2,
            threads=1,
            progress=lambda done, total: told.append((done, total)),
        )
        assert [case.side.partition(":")[2] for case in report.cases] == ["fused-fp32", "primitive-fp32"]
        assert told[-1][0] == told[-1][1] > 0
        assert (report.command, report.peak_rss_bytes) == ("", None)

    def test_of_another_model(self, tiny_bundle: Path) -> None:
        with pytest.raises(sdrpn.BadInput, match=r"demo is of another model than .*; compare exports of one"):
            sdrpn.bench_bundle(tiny_bundle, others=(sdrpn.BenchBundle("demo"),))

    def test_a_side_twice(self, tiny_bundle: Path) -> None:
        with pytest.raises(sdrpn.BadInput, match="compared with itself; name another variant, or its own graphs"):
            sdrpn.bench_bundle(tiny_bundle, others=(sdrpn.BenchBundle(tiny_bundle),))

    def test_no_runs(self) -> None:
        with pytest.raises(sdrpn.BadInput, match="runs is 0; expected a whole number of at least 1"):
            BenchRequest("bundle", runs=0)


class TestAskQuestion:
    def test_pieces_are_the_answer(self, text_bundle: Path) -> None:
        pieces = list[str]()
        request = AskRequest(text_bundle, _png(), "What?", max_new_tokens=6, threads=1)
        asked = ask_question(request, piece=pieces.append)
        assert "".join(pieces) == asked.answer.text
        assert asked.overlay().width > 0

    def test_a_model_without_rpn_is_told(self, plain_bundle: Path) -> None:
        notes = list[str]()
        request = AskRequest(plain_bundle, _png(), "What?", max_new_tokens=2, threads=1)
        ask_question(request, note=notes.append)
        assert notes == [f"{plain_bundle} {NO_RPN}"]

    def test_a_bundle_without_tokenizer(self, tiny_bundle: Path) -> None:
        with pytest.raises(sdrpn.BadInput, match=r"has no tokenizer\.json, and a question in words needs one"):
            ask_question(AskRequest(tiny_bundle, _png(), "What?"))


class TestInspect:
    def test_a_bundle_that_was_changed(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions())
        assert sdrpn.inspect_bundle(tmp_path / "bundle", verify=True).path == tmp_path / "bundle"
        next((tmp_path / "bundle").rglob("*.onnx")).write_bytes(b"")
        with pytest.raises(sdrpn.BadBundle, match=r"\.onnx"):
            sdrpn.inspect_bundle(tmp_path / "bundle")

    def test_a_bundle_without_engines(self) -> None:
        with pytest.raises(sdrpn.BadInput, match=r"build them: sdrpn build demo --target NAME --out FOLDER$"):
            sdrpn.inspect_engines("demo")


def test_a_build_of_no_jobs() -> None:
    with pytest.raises(sdrpn.BadInput, match="jobs is 0; expected a whole number of at least 1"):
        sdrpn.build_engines("demo", "rtx-4090", jobs=0)


def test_the_shipped_model_reads_its_scene() -> None:
    found = sdrpn.run_demo(threads=1)
    assert (found.plain.right, found.again.right) == (False, True)
    assert found.again.answer.text == found.scene.expected


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if not path.stem.endswith("_text")], ids=lambda path: path.name
)
def test_messages_name_no_options(path: Path) -> None:
    """A program has none. Whole commands may have some, and so may what a verb prints."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pages = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pages
    ]
    # The notes on JetPack are about an option of Python's own venv.
    option = re.compile(r"(?<![\w-])--(?!system-site-packages)[a-z]")
    assert [text for text in texts if option.search(text) and not re.search(r"\b(sdrpn|pip) \w", text)] == []


def _png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(photo()).save(content, "PNG")
    return content.getvalue()
