"""`demo` wherever a command takes a BUNDLE, beside a folder of that name, and never written to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import CHECKPOINT, DEMO_BUNDLE, RPN
from sdrpn.errors import BadInput
from sdrpn.method.spec import ModelSpec
from sdrpn.tags import shipped_scene
from sdrpn.terminal.output import warn
from tests.cli.command import Command, refusal
from tests.damage import copied

if TYPE_CHECKING:
    from sdrpn.compare.answers import TrialQuestion


def manifest_of(bundle: str | Path) -> Any:
    """As `sdrpn inspect --json` prints it."""
    return json.loads(open_bundle(bundle).manifest.to_text())


def files() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in DEMO_BUNDLE.rglob("*")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ask(sdrpn: Command) -> None:
    scene = shipped_scene()
    outcome = sdrpn("ask", "demo", scene.picture, scene.question, "--max-new-tokens", 4)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.strip()


def test_inspect(sdrpn: Command) -> None:
    assert sdrpn("inspect", "demo", "--verify", "--json").json() == manifest_of("demo")


def test_plan(sdrpn: Command) -> None:
    plan = sdrpn("plan", "demo", "--json").json()
    assert (plan["bundle"], plan["fits"]) == ("demo", True)


def test_bench(sdrpn: Command) -> None:
    command = ("bench", "demo", "--compare", "demo:fused-int8", "--cases", "plain", "--runs", 1, "--json")
    outcome = sdrpn(*command, "--threads", 1, "--new-tokens", 2)
    assert outcome.code == 0, outcome.err
    assert '"demo:fused-int8-cpu"' in outcome.out
    assert '"demo:fused-int8"' in outcome.out


@pytest.mark.slow
class TestAgainstItsCheckpoint:
    def test_compare(self, sdrpn: Command) -> None:
        outcome = sdrpn("verify", "--exact", "demo", "--checkpoint", CHECKPOINT, "--rpn", RPN)
        assert outcome.code == 0, outcome.err

    def test_verify(self, sdrpn: Command) -> None:
        before = files()
        outcome = sdrpn("verify", "demo")
        assert outcome.code == 0, outcome.err
        assert files() == before


def test_verify_finds_its_checkpoint(sdrpn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that is looked up there, so that the rest need not run."""
    pytest.importorskip("torch")
    monkeypatch.setattr("sdrpn.compare.answers.trial_questions", stopped_at)
    copy = copied(DEMO_BUNDLE, tmp_path)  # as `sdrpn build demo --out` makes one
    for bundle in ("demo", copy):
        assert refusal(sdrpn("verify", bundle)) == f"asked about {CHECKPOINT.name}, RPN of 2 layers"
    monkeypatch.setattr("sdrpn.bundle.shipped.RPN", Path("elsewhere"))
    monkeypatch.setattr("sdrpn.bundle.shipped._REPOSITORY", Path())
    monkeypatch.setattr("sdrpn.bundle.shipped.CHECKPOINT", Path("checkpoint"))
    assert refusal(sdrpn("verify", "demo")).endswith("name both (--checkpoint checkpoint, --rpn elsewhere)")


def stopped_at(spec: ModelSpec) -> tuple[TrialQuestion, ...]:
    """Called once checkpoint and RPN were found to be the bundle's own."""
    assert spec == open_bundle("demo").spec
    assert spec.rpn is not None
    raise BadInput(f"asked about {CHECKPOINT.name}, RPN of {spec.rpn.layers} layers")


class TestBuild:
    TARGET = ("--target", "rtx-4090", "--graphs", "rpn")

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("tensorrt_rtx_bindings")

    def test_the_package_is_left_alone(self, sdrpn: Command) -> None:
        before = files()
        message = refusal(sdrpn("build", "demo", *self.TARGET))
        assert message.startswith("demo is part of the installed package (")
        assert message.endswith("and nothing is written there; build in a copy of it (--out BUNDLE)")
        assert files() == before

    def test_a_dry_run_needs_no_copy(self, sdrpn: Command) -> None:
        before = files()
        found = sdrpn("build", "demo", *self.TARGET, "--dry-run", "--json", "--out", "engines").json()
        assert (found["variant"], found["engines"]) == ("fused-int8", [{"graph": "rpn", "cached": False}])
        assert files() == before
        assert not Path("engines").exists()

    def test_a_dry_run_says_that_a_build_needs_one(self, sdrpn: Command) -> None:
        message = refusal(sdrpn("build", "demo", *self.TARGET))
        lines = sdrpn("build", "demo", *self.TARGET, "--dry-run").out.splitlines()
        assert [line.split("  ")[-1].strip() for line in lines if line.startswith("but not here")] == [message]
        found = sdrpn("build", "demo", *self.TARGET, "--dry-run", "--json").json()
        assert found["obstacle"] == message.removesuffix(" (--out BUNDLE)")
        assert sdrpn("build", "demo", *self.TARGET, "--dry-run", "--json", "--out", "mine").json()["obstacle"] is None

    def test_a_copy_is_built_and_kept(self, sdrpn: Command) -> None:
        command = ("build", "demo", *self.TARGET, "--out", "mine", "--json", "--opt-level", 0)
        (engine,) = json.loads(sdrpn(*command).out)["engines"]
        assert Path(engine["engine"]) == Path("mine/engines/rtx-4090/rpn.engine")
        assert open_bundle("mine").manifest == open_bundle("demo").manifest
        (again,) = json.loads(sdrpn(*command).out)["engines"]
        assert again["cached"]


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "default", "--json"),
        ("plan", "default", "--json"),
        ("bench", "demo", "--compare", "default:none"),
        ("doctor", "--device", "--bundle", "default", "--backend", "none"),
    ],
)
def test_the_former_name_works_and_says_so_to_people(
    sdrpn: Command, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = sdrpn(*command)
    assert "old name" not in quiet.err  # a script's errors stay one line
    monkeypatch.setattr("sdrpn.terminal.arguments.warn_of_former_name", warn)
    outcome = sdrpn(*command)
    note = "default is demo now; the old name goes with the next version (a folder of that name is ./default)"
    assert outcome.err.startswith(f"sdrpn: warning: {note}\n")
    assert "does not exist" not in outcome.err


class TestAFolderOfThatName:
    @pytest.fixture(autouse=True)
    def folder(self, tiny_bundle: Path) -> None:
        shutil.copytree(tiny_bundle, "demo")

    def test_the_word_is_the_shipped_one_and_says_so(self, sdrpn: Command) -> None:
        outcome = sdrpn("inspect", "demo", "--json")
        assert '"fused-int8"' in outcome.out
        assert outcome.err == (
            "sdrpn: warning: demo is the model that comes with sdrpn; for the folder of that name here, write ./demo\n"
        )

    def test_a_path_is_the_folder(self, sdrpn: Command, tiny_bundle: Path) -> None:
        assert sdrpn("inspect", "./demo", "--json").json() == manifest_of(tiny_bundle)


def test_without_a_variant_the_advice_is_not_to_write_there(sdrpn: Command) -> None:
    message = refusal(sdrpn("plan", "demo", "--variant", "fused-fp32"))
    assert "Add one: sdrpn export CHECKPOINT --out BUNDLE" in message
