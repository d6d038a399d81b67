"""`sdrpn inspect --engines`: what was built, whether it fits, and the exit code that scripts go by."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.engine_manifest import Fallback, engine_paths
from sdrpn.runtime.backends.tensorrt_library import Validity
from sdrpn.runtime.engines import preflight
from sdrpn.workflows import inspection
from tests.cli.command import Command, refusal
from tests.damage import copied, flip_byte
from tests.runtime.engine_files import TARGET, platform, rewrite, write_engines


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = copied(tiny_bundle, tmp_path)
    write_engines(open_bundle(path))
    return path


class Satisfied:
    def validity(self, path: Path) -> Validity:
        return Validity("VALID", (), "")


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the engines were built for."""
    monkeypatch.setattr(inspection, "read_platform", platform)
    monkeypatch.setattr(preflight, "open_library", lambda flavour: Satisfied())


@pytest.mark.usefixtures("fitting")
def test_engines_that_fit(sdrpn: Command, bundle: Path) -> None:
    found = sdrpn("inspect", bundle, "--engines", "--target", TARGET)
    assert (found.code, found.err) == (0, "")
    title, head, *rows, last = found.out.splitlines()
    assert (title, last) == (TARGET, "fits this machine")
    assert head.split() == ["graph", "size", "library", "for", "variant", "context", "batch", "kernels", "built", "in"]
    assert [row.split()[0] for row in rows] == ["vision", "trunk", "rpn", "tail"]
    assert re.search(r"15 B +tensorrt-rtx 1\.7\.1\.116 +SM86 SM89 +fused-fp32 +128 +1 +3, passed +1\.5 s", rows[1])


def test_a_bundle_says_what_was_built_for_it(sdrpn: Command, bundle: Path) -> None:
    engine_paths(bundle, TARGET, "rpn")[1].unlink()
    assert re.search(r"^engines for +rtx-4090 \(vision, trunk, tail\)$", sdrpn("inspect", bundle).out, re.MULTILINE)


@pytest.mark.usefixtures("fitting")
def test_kernels(sdrpn: Command, bundle: Path) -> None:
    found = sdrpn("inspect", bundle, "--engines", "--layers")
    assert found.code == 0
    assert "rpn: part 0 2 gemm; part 1 1 mha" in found.out  # it has one profile
    lines = found.out.splitlines()
    begin = lines.index("trunk: decode 2 gemm; prefill 1 mha")
    assert lines[begin + 1].split() == ["profile", "kernel", "kind", "reads", "weights", "writes"]
    assert re.fullmatch(r"decode +product +gemm +x Half \[1, 64\] +Int4 \[64, 32\] +y Half \[1, 32\]", lines[begin + 2])
    assert lines[begin + 5] == "gate: passed"
    value = sdrpn("inspect", bundle, "--engines", "--layers", "--json").json()["targets"]
    assert [len(kernels) for kernels in value[0]["layers"].values()] == [3, 3, 3, 3]
    assert value[0]["problems"] == []
    assert value[0]["engines"]["tail"]["manifest"]["max_context"] == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"layers\.json is missing; build it again"),
        ("{", r"layers\.json cannot be read \(it is not JSON: "),
        ("{}", r"layers\.json is not a list of kernels; build it again"),
        ('[{"name": "k", "inputs": [{"dims": 3}]}]', r"layers\.json is not a list of kernels; build it again"),
        ('[{"name": "k", "constants": 3}]', r"layers\.json is not a list of kernels; build it again"),
        ('[{"name": "k"}]', r"layers\.json has 1 kernels, the manifest says 3; build it again"),
    ],
)
def test_a_list_of_kernels_that_cannot_be_shown(sdrpn: Command, bundle: Path, text: str | None, message: str) -> None:
    path = engine_paths(bundle, TARGET, "trunk")[2]
    path.unlink() if text is None else path.write_text(text)
    assert re.search(message, refusal(sdrpn("inspect", bundle, "--engines", "--layers")))


def test_a_machine_without_a_gpu_is_no_failure_unless_the_target_was_named(sdrpn: Command, bundle: Path) -> None:
    """A bundle may have engines for many machines, of which this one need not be one."""
    found = sdrpn("inspect", bundle, "--engines")
    assert found.code == 0
    assert "fits this machine" not in found.out
    assert sdrpn("inspect", bundle, "--engines", "--target", TARGET).code == 1


@pytest.mark.usefixtures("fitting")
def test_what_the_gate_says_of_kernels(sdrpn: Command, bundle: Path) -> None:
    rewrite(bundle, "trunk", kernel_gate=("remark: the engine holds weights twice",))
    found = sdrpn("inspect", bundle, "--engines", "--layers", "--target", TARGET)
    assert found.out.splitlines().count("remark: the engine holds weights twice") == 1
    assert found.out.count("gate: passed") == 3


@pytest.mark.usefixtures("fitting")
def test_a_broken_engine_is_a_failure(sdrpn: Command, bundle: Path) -> None:
    flip_byte(engine_paths(bundle, TARGET, "trunk")[0])
    found = sdrpn("inspect", bundle, "--engines")
    assert (found.code, found.err) == (1, "")
    assert "trunk: MALFORMED_ENGINE: engine.sha256 is" in found.out
    (problem,) = json.loads(sdrpn("inspect", bundle, "--engines", "--json").out)["targets"][0]["problems"]
    assert (problem["graph"], problem["reason"], problem["field"]) == ("trunk", "MALFORMED_ENGINE", "engine.sha256")
    assert problem["line"] in found.out


def test_what_cannot_be_asked(sdrpn: Command, bundle: Path, tiny_bundle: Path) -> None:
    assert refusal(sdrpn("inspect", tiny_bundle, "--engines")).endswith(f"sdrpn build {tiny_bundle} --target NAME")
    assert "has no engines for target 'l4'" in refusal(sdrpn("inspect", bundle, "--engines", "--target", "l4"))
    assert refusal(sdrpn("inspect", bundle, "--layers")) == "--layers needs --engines; add it"
    assert refusal(sdrpn("inspect", bundle, "--target", "l4")) == "--target needs --engines; add it"


class TestAsk:
    def test_engines_that_are_not_used_are_told_of(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sdrpn.runtime import select as choice

        path = copied(text_bundle, tmp_path)
        write_engines(open_bundle(path))
        monkeypatch.setattr(choice, "read_platform", lambda device: platform(libraries={"tensorrt-rtx": "1.6"}))
        found = sdrpn("ask", path, picture, "What?", "--max-new-tokens", 1)
        assert found.code == 0
        assert re.match(
            r"sdrpn: warning: the engines of rtx-4090 are not used: .*: VERSION_MISMATCH: library_version", found.err
        )
        message = refusal(sdrpn("ask", path, picture, "What?", "--backend", "tensorrt"))
        assert re.match("engines of rtx-4090: .*: VERSION_MISMATCH: library_version is tensorrt-rtx 1.7", message)

    def test_the_backends_are_those_of_the_runtime(self) -> None:
        from sdrpn.runtime.backends import AUTOMATIC, BACKENDS, graph_backends
        from sdrpn.terminal import arguments

        assert (AUTOMATIC, *BACKENDS) == arguments.BACKENDS
        assert tuple(info.name for info in graph_backends()) == arguments.GRAPH_BACKENDS


def test_what_was_built_instead_and_what_was_not_judged(sdrpn: Command, bundle: Path, tmp_path: Path) -> None:
    """In the table, in JSON and on the page."""
    rewrite(bundle, "trunk", fallback=Fallback("fused-fp16", "no kernel for attention", "0" * 64))
    rewrite(bundle, "tail", decomposed_attention=True, kernel_gate=("not judged: the listing has no constants",))
    out = sdrpn("inspect", bundle, "--engines").out
    assert (
        "trunk: built from fused-fp32 instead of fused-fp16, for which no engine could be built: no kernel for" in out
    )
    assert "tail: attention was decomposed" in out
    assert re.search(r"^tail .*3, not judged", out, re.MULTILINE)
    (target,) = json.loads(sdrpn("inspect", bundle, "--engines", "--json").out)["targets"]
    verdicts = {graph: engine["kernel_verdict"] for graph, engine in target["engines"].items()}
    assert verdicts == {"vision": "passed", "trunk": "passed", "rpn": "passed", "tail": "unjudged"}
    assert target["engines"]["trunk"]["manifest"]["fallback"]["variant"] == "fused-fp16"
    for name in ("page.md", "page.html"):
        sdrpn("inspect", bundle, "--engines", "--report", tmp_path / name)
        page = (tmp_path / name).read_text()
        assert "fused-fp32 instead of fused-fp16" in page
        assert "3, not judged: the listing has no constants" in page
