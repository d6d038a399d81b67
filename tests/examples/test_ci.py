"""The engine-building example for CI: its steps are run here, on a small model, for a target of every kind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint, write_rpn
from sdrpn.cli.main import build_parser
from sdrpn.engines import read_targets
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec

pytest.importorskip("tensorrt_rtx_bindings")

CI = Path(__file__).parents[2] / "examples" / "ci"
TARGETS = ("rtx-4090", "jetson-orin-nx-jp62", "h100")
# fp16 has fused attention for heads of 128 channels.
SPEC = ModelSpec(
    VisionSpec(image_size_px=56, patch_size_px=14, width=128, layers=3, heads=2, mlp_width=256),
    LlmSpec(vocabulary=288, width=256, layers=4, heads=4, kv_heads=4, head_dim=128, mlp_width=256, max_context=512),
    tap_layer=2,
    rpn=RpnSpec(layers=2),
)


def programs() -> dict[str, str]:
    """sdrpn without an installation of its own, and without a GPU."""
    return {**os.environ, "SDRPN": f"{sys.executable} -m sdrpn.cli.main", "PYTHON": sys.executable}


def run(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(CI / "build-engines.sh"), *map(str, arguments)]
    environment = {**programs(), **settings}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain LLaVA, and in a folder beside it an RPN of its own."""
    folder = tmp_path_factory.mktemp("ci")
    write_random_checkpoint(folder / "whole", SPEC)
    with open_checkpoint(folder / "whole") as whole:
        write_rpn(folder / "rpn", SPEC, whole.read)
    path = folder / "my-checkpoint"
    write_random_checkpoint(path, dataclasses.replace(SPEC, rpn=None), layout="llava", with_tokenizer=True)
    return path


def settings(checkpoint: Path) -> dict[str, str]:
    rpn = checkpoint.parent / "rpn" / "rpn.safetensors"
    return {"CHECKPOINT_OPTIONS": f"--rpn {rpn}", "EXPORT_OPTIONS": "--json", "MAX_CONTEXT": "256"}


@pytest.fixture(scope="module")
def done(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that came of it, and what was printed."""
    out = tmp_path_factory.mktemp("ci") / "out"
    outcome = run(checkpoint, out, *TARGETS, **settings(checkpoint))
    assert outcome.returncode == 0, outcome.stderr
    return out, outcome.stdout


@pytest.mark.slow  # engines of several targets, each variant verified: over a minute
class TestScript:
    def test_what_can_be_built_here_is(self, done: tuple[Path, str]) -> None:
        out, _ = done
        state = json.loads((out / "targets.json").read_text())
        assert list(state) == list(TARGETS)
        assert state["rtx-4090"] == "built"
        assert sorted(path.name for path in (out / "bundle" / "engines" / "rtx-4090").glob("*.engine")) == [
            *("rpn.engine", "tail.engine", "trunk.engine", "vision.engine")
        ]

    def test_what_needs_the_device_is_said_so(self, done: tuple[Path, str]) -> None:
        out, printed = done
        assert printed.count('"variants"') == 2  # what an export with --json prints, one per dialect
        state = json.loads((out / "targets.json").read_text())
        for name in ("jetson-orin-nx-jp62", "h100"):
            assert f"{name} needs the device: tensorrt is not installed here; it comes with JetPack" in printed
            assert state[name].startswith("tensorrt is not installed here")
        # Graphs for it are there nevertheless.
        assert (out / "bundle" / "trunk.primitive-fp16.onnx").exists()

    def test_every_variant_is_verified_once(self, done: tuple[Path, str]) -> None:
        """Also that of a device elsewhere."""
        said = re.findall(r"^== verify: (.*)$", done[1], re.MULTILINE)
        assert said == ["fused-fp16", "primitive-fp16"]

    def test_the_report_has_sizes_seconds_memory_and_gates(self, done: tuple[Path, str]) -> None:
        out, _ = done
        (engines, missing), gates = self.page(out)
        _, _, head, _, *rows = engines.splitlines()
        assert "| fused-fp16 | trunk | values, graph | passed | " in gates
        assert "| size | built on | built in | peak RSS | kernels | parity |" in head
        assert [row.split(" | ")[1] for row in rows] == ["vision", "trunk", "rpn", "tail"]
        assert all(re.search(r"\d, passed \| graph parity, \d+ of \d+ gates; engine not run", row) for row in rows)
        assert [row.split(" | ")[0] for row in missing.splitlines() if row.startswith(("| jetson", "| h100"))] == [
            "| jetson-orin-nx-jp62",
            "| h100",
        ]
        assert "<td>rtx-4090</td><td>tail</td>" in (out / "engines.html").read_text()

    def page(self, out: Path) -> tuple[list[str], str]:
        """Engines and what was not built, and gates."""
        engines, gates = (out / "engines.md").read_text().split("\n## Gates\n")
        return engines.split("\n\n## Not built\n"), gates

    def test_digests_are_right(self, done: tuple[Path, str]) -> None:
        out, _ = done
        check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
        assert subprocess.run(check, cwd=out, capture_output=True, text=True, check=False).stdout == ""
        listed = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
        there = {f"./{path.relative_to(out)}" for path in out.rglob("*") if path.is_file()}
        assert listed == {name for name in there if not name.startswith("./bundle/")} - {"./SHA256SUMS"}

    def test_the_release_holds_what_answers_take(self, done: tuple[Path, str], tmp_path: Path) -> None:
        """It goes by itself: the bundle is not there any more."""
        release = shutil.copytree(done[0] / "release", tmp_path / "release")
        assert not list(release.rglob("*.onnx"))
        inspect = [*shlex.split(programs()["SDRPN"]), "inspect", str(release), "--engines", "--json"]
        outcome = subprocess.run(inspect, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr  # 1: an engine that is broken on every machine
        (report,) = json.loads(outcome.stdout)["targets"]
        assert not [problem for problem in report["problems"] if problem["reason"] == "MALFORMED_ENGINE"]

    def test_provenance(self, done: tuple[Path, str]) -> None:
        out, _ = done
        statement = json.loads((out / "provenance.json").read_text())
        assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
        lines = (out / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        subjects = {f"./release/{subject['name']}": subject["digest"]["sha256"] for subject in statement["subject"]}
        assert subjects.items() <= sums.items()
        assert "./release/engines/rtx-4090/trunk.engine" in subjects
        definition = statement["predicate"]["buildDefinition"]
        assert definition["externalParameters"] == {"checkpoint": "my-checkpoint", "targets": ["rtx-4090"]}
        assert definition["internalParameters"]["engines/rtx-4090/trunk.engine.json"]["max_context"] == 256
        names = {dependency["name"] for dependency in definition["resolvedDependencies"]}
        assert {"my-checkpoint", "python", "numpy", "onnx"} <= names

    def test_a_second_run_keeps_the_engines(self, done: tuple[Path, str], checkpoint: Path) -> None:
        out, _ = done
        before = {path: path.stat().st_mtime_ns for path in (out / "bundle" / "engines").rglob("*.engine")}
        outcome = run(checkpoint, out, "rtx-4090", **settings(checkpoint), VERIFY="0")
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.count("  kept  ") == 4
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_an_unknown_target(self, checkpoint: Path, tmp_path: Path) -> None:
        outcome = run(checkpoint, tmp_path / "out", "rtx-1")
        assert outcome.returncode == 2
        assert "there is no target 'rtx-1'; did you mean rtx-5090?; known targets are a100, " in outcome.stderr

    def test_usage(self) -> None:
        outcome = run("checkpoint")
        assert outcome.returncode == 2
        assert outcome.stderr.startswith("usage: ")


@pytest.fixture
def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((CI / "github-actions.yml").read_text(encoding="utf-8"))
    return found


class TestWorkflow:
    def steps(self, workflow: dict[Any, Any]) -> list[dict[str, Any]]:
        return [step for job in workflow["jobs"].values() for step in job["steps"]]

    def test_its_commands_are_shell(self, workflow: dict[Any, Any]) -> None:
        commands = [step["run"] for step in self.steps(workflow) if "run" in step]
        assert len(commands) == 6
        for command in commands:
            assert subprocess.run(["bash", "-n"], input=command, text=True, check=False).returncode == 0, command

    def test_its_build_is_the_script_that_is_tested(self, workflow: dict[Any, Any]) -> None:
        (build,) = [step["run"] for step in self.steps(workflow) if "build-engines.sh" in step.get("run", "")]
        words = shlex.split(build)
        assert words[-5:] == ["bash", "examples/ci/build-engines.sh", "$CHECKPOINT", "out", "$TARGETS"]

    def test_its_options_exist(self, workflow: dict[Any, Any]) -> None:
        script = (CI / "build-engines.sh").read_text(encoding="utf-8")
        settings = set(workflow["jobs"]["build"]["env"]) - {"CHECKPOINT", "TARGETS"}
        assert settings == {name for name in settings if f"#   {name} " in script}

    def test_its_targets_exist(self, workflow: dict[Any, Any]) -> None:
        # YAML 1.1 takes the key `on` for a boolean.
        inputs = workflow[True]["workflow_dispatch"]["inputs"]
        assert set(inputs["targets"]["default"].split()) <= set(read_targets())

    def test_every_action_has_a_version(self, workflow: dict[Any, Any]) -> None:
        assert all(re.search(r"@v\d+$", step["uses"]) for step in self.steps(workflow) if "uses" in step)


class TestGpuWorkflow:
    @pytest.fixture
    def gpu(self) -> dict[Any, Any]:
        found: dict[Any, Any] = yaml.safe_load((CI / "gpu.yml").read_text(encoding="utf-8"))
        return found

    def test_its_commands_are_shell_and_understood(self, gpu: dict[Any, Any]) -> None:
        commands = [step["run"] for step in gpu["jobs"]["gpu"]["steps"] if "run" in step]
        verbs = []
        for command in commands:
            assert subprocess.run(["bash", "-n"], input=command, text=True, check=False).returncode == 0, command
            for line in command.splitlines():
                words = shlex.split(line.strip())
                if words[:1] == [".venv/bin/sdrpn"]:
                    verbs.append(build_parser().parse_args(words[1:]).verb)
        assert verbs == ["doctor", "build", "doctor", "doctor"]

    def test_it_runs_the_tests_that_need_a_gpu(self, gpu: dict[Any, Any]) -> None:
        assert any("pytest -m gpu" in step.get("run", "") for step in gpu["jobs"]["gpu"]["steps"])

    def test_its_target_exists(self, gpu: dict[Any, Any]) -> None:
        assert gpu[True]["workflow_dispatch"]["inputs"]["target"]["default"] in read_targets()
