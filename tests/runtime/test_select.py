"""Which variant ONNX Runtime answers with, on releases that are too old for some."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.cli.main import main
from sdrpn.errors import BadInput, MissingDependency
from sdrpn.runtime import Session
from sdrpn.runtime.backends import onnxruntime_info
from sdrpn.runtime.backends.onnxruntime_info import require_release
from sdrpn.runtime.select import graph_variant
from sdrpn.tags import shipped_scene


@pytest.fixture
def old_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last release for Python 3.10, as far as its version goes."""
    monkeypatch.setattr(onnxruntime_info, "onnxruntime_version", lambda: "1.23.2")


def without(bundle: Bundle, dialect: str) -> Bundle:
    """The same, in memory, with one dialect left."""
    kept = {name: variant for name, variant in bundle.manifest.variants.items() if variant.dialect != dialect}
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, variants=kept))


def test_a_new_enough_release_runs_fused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.25.0", "1.25.0rc1", "1.32.0", "2.0"):
        monkeypatch.setattr(onnxruntime_info, "onnxruntime_version", lambda version=version: version)
        assert graph_variant(open_bundle(tiny_bundle)).name == "fused-fp32"


@pytest.mark.usefixtures("old_onnxruntime")
class TestOldRelease:
    def test_primitive_is_chosen_where_there_is_one(self, tiny_bundle: Path) -> None:
        assert graph_variant(open_bundle(tiny_bundle)).name == "primitive-fp32"
        require_release(open_bundle(tiny_bundle), open_bundle(tiny_bundle).variant("primitive-fp32"))

    @pytest.mark.parametrize(
        ("python", "reason", "cure"),
        [
            ((3, 10, 13), ", of the last series for Python 3.10", "Use Python 3.11 or newer"),
            ((3, 12, 1), "", "Install a newer one: pip install -U onnxruntime"),
        ],
    )
    def test_fused_is_refused_with_the_reason_and_the_cure(
        self,
        tiny_bundle: Path,
        monkeypatch: pytest.MonkeyPatch,
        python: tuple[int, int, int],
        reason: str,
        cure: str,
    ) -> None:
        bundle = open_bundle(tiny_bundle)
        monkeypatch.setattr(sys, "version_info", python)
        with pytest.raises(MissingDependency) as error:
            graph_variant(bundle, "fused-fp32")
        assert str(error.value) == (
            f"{bundle.path} as fused-fp32 has graphs of opset 24, which ONNX Runtime runs from 1.25 on; installed is "
            f"1.23.2{reason}. {cure}, or use the variant primitive-fp32"
        )

    def test_a_bundle_without_primitive_says_how_to_add_it(self, tiny_bundle: Path) -> None:
        only_fused = without(open_bundle(tiny_bundle), "primitive")
        with pytest.raises(
            MissingDependency,
            match=r"or add a variant of the dialect primitive: sdrpn export CHECKPOINT --out \S+ --dialect primitive "
            r"--precision fp32$",
        ):
            graph_variant(only_fused)

    def test_the_shipped_bundle_answers(self) -> None:
        scene = shipped_scene()
        with Session.open("demo", backend="onnxruntime", threads=1) as session:
            assert session.variant.name == "primitive-int8-cpu"
            assert session.answer(scene.picture, scene.question, max_new_tokens=8).text == scene.expected

    @pytest.mark.parametrize("verb", [["ask", "{bundle}", "{picture}", "what?"], ["plan", "{bundle}"]])
    def test_verbs_take_what_runs(
        self, verb: list[str], text_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = [word.format(bundle=text_bundle, picture=shipped_scene().picture) for word in verb]
        assert main(line) == 0
        assert main([*line, "--variant", "fused-fp32"]) == 2
        assert "use the variant primitive-fp32" in capsys.readouterr().err


def test_an_absent_onnxruntime_is_reported_where_it_is_needed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert graph_variant(open_bundle(tiny_bundle)).name == "fused-fp32"
    with pytest.raises(MissingDependency, match="backend onnxruntime needs ONNX Runtime, which cannot be imported"):
        Session.open(tiny_bundle, backend="onnxruntime")


def test_an_unknown_variant(tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="has no variant 'int4'"):
        graph_variant(open_bundle(tiny_bundle), "int4")
