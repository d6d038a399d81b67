"""The page of all engines: what is in it, and that nothing in it is taken for markup."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.engine_manifest import ParityGate, engine_paths
from sdrpn.errors import BadInput
from sdrpn.reports.engine_page import PageEngine, page_text
from sdrpn.runtime.engines.engine_set import engine_set
from tests.cli.command import Command, refusal
from tests.damage import copied, flip_byte
from tests.runtime.engine_files import TARGET, write_engines

GOOD = ParityGate("trunk", "values", "tap, prefill", 1e-3, 2e-2, 9, True)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = copied(tiny_bundle, tmp_path)
    write_engines(open_bundle(path))
    return path


@pytest.fixture
def engine(bundle: Path) -> PageEngine:
    manifest = engine_set(open_bundle(bundle), TARGET).manifests["trunk"]
    return PageEngine(TARGET, "trunk", manifest)


def row(engine: PageEngine) -> list[str]:
    return tables(page_text(Path("a.md"), "t", [engine]))[0][-1].strip("| ").split(" | ")


def tables(page: str) -> list[list[str]]:
    """Lines of each, with its head."""
    return [part.splitlines() for part in page.split("\n\n") if part.startswith("|")]


def changed(engine: PageEngine, **changes: Any) -> PageEngine:
    assert engine.manifest is not None
    return dataclasses.replace(engine, manifest=dataclasses.replace(engine.manifest, **changes))


def test_a_row(engine: PageEngine) -> None:
    assert engine.manifest is not None
    built = datetime.fromtimestamp(engine.manifest.engine.modified_ns / 1e9, timezone.utc).date().isoformat()
    assert row(engine) == [
        *("rtx-4090", "trunk", "fused-fp32", "SM86 SM89", "tensorrt-rtx 1.7.1.116", "128", "1", "15 B"),
        *(built, "1.5 s", "268.4 MB", "3, passed", "graph parity, 1 of 1 gates; engine not run"),
        engine.manifest.engine.sha256,
    ]


def test_what_gates_say(engine: PageEngine) -> None:
    assert row(changed(engine, kernel_gate=("k writes a cache",)))[11] == "FAILED: k writes a cache"
    assert row(changed(engine, kernel_gate=("not judged: none",)))[11] == "3, not judged: none"
    assert row(changed(engine, parity=()))[12] == "not verified; engine not run"
    assert row(changed(engine, parity=(GOOD, dataclasses.replace(GOOD, ok=False))))[12] == "FAILED: trunk values"


@pytest.mark.parametrize(
    "ran", [ParityGate("trunk", "smoke test", "tap", 1e-3, 2e-2, 4, True), dataclasses.replace(GOOD, graph="engines")]
)
def test_what_a_gpu_ran_is_said_apart(engine: PageEngine, ran: ParityGate) -> None:
    expected = "graph parity, 1 gates; engine run on a GPU, 1 of 1 gates"
    assert row(changed(engine, parity=(GOOD, ran)))[12] == expected
    assert row(changed(engine, parity=(ran,)))[12] == "engine run on a GPU, 1 of 1 gates"


def test_targets_without_engines(sdrpn: Command, bundle: Path, tmp_path: Path) -> None:
    asked, page = tmp_path / "targets.json", tmp_path / "engines.md"
    asked.write_text(json.dumps({TARGET: "built", "jetson-thor": "needs the <device>"}), "utf-8")
    assert sdrpn("inspect", bundle, "--engines", "--report", page, "--asked", asked).code == 0
    assert "| jetson-thor | needs the &lt;device&gt; |" in page.read_text()
    asked.write_text("[]", "utf-8")
    assert "is not a JSON object of targets" in refusal(
        sdrpn("inspect", bundle, "--engines", "--report", page, "--asked", asked)
    )
    assert "needs --report FILE; add it" in refusal(sdrpn("inspect", bundle, "--engines", "--asked", asked))


def test_the_worst_of_every_measure(engine: PageEngine) -> None:
    """Once, although several targets are made of the same graphs."""
    odd = changed(engine, parity=(GOOD, ParityGate("answer", "same crops", "image 2", 0.5, 0.9, 5, False)))
    _, (head, _, *rows) = tables(page_text(Path("a.md"), "t", [odd, dataclasses.replace(odd, target="l4")]))
    assert head == "| variant | graph | measure | gate | worst | where |"
    assert rows == [
        "| fused-fp32 | trunk | values, graph | passed | 0.001, at most 0.02 | tap, prefill |",
        "| fused-fp32 | answer | same crops, graph | FAILED | 0.5000000, at least 0.9 | image 2 |",
    ]
    page = page_text(Path("a.html"), "t", [odd])
    assert page.count('<tr class="failed">') == 2
    assert "<h2>Gates</h2>" in page
    assert len(tables(page_text(Path("a.md"), "t", [changed(engine, parity=())]))) == 1


def test_a_manifest_that_cannot_be_believed() -> None:
    cells = row(PageEngine(TARGET, "tail", None, "it was altered"))
    assert (cells[:2], cells[-1]) == ([TARGET, "tail"], "FAILED: it was altered")
    page = page_text(Path("a.html"), "t", [PageEngine(TARGET, "tail", None, "it was altered")])
    assert page.count('<tr class="failed">') == 1


def test_nothing_is_taken_for_markup(engine: PageEngine) -> None:
    odd = changed(engine, kernel_gate=("a|b <script>",))
    assert "a\\|b" in page_text(Path("a.md"), "t", [odd])
    page = page_text(Path("a.html"), "<t>", [odd, engine])
    assert "&lt;t&gt;" in page
    assert "a|b &lt;script&gt;" in page
    assert page.count('<tr class="failed">') == 1


def test_another_format() -> None:
    with pytest.raises(BadInput, match=r"a\.pdf is not a report's file name; expected one that ends in \.md or \.html"):
        page_text(Path("a.pdf"), "t", [])


def test_a_changed_engine_is_marked(sdrpn: Command, bundle: Path, tmp_path: Path) -> None:
    flip_byte(engine_paths(bundle, TARGET, "rpn")[0])
    page = tmp_path / "engines.md"
    assert sdrpn("inspect", bundle, "--engines", "--report", page).code == 1
    (line,) = [line for line in tables(page.read_text())[0] if "FAILED" in line]
    assert line.startswith("| rtx-4090 | rpn |")
    assert "FAILED: rpn: MALFORMED_ENGINE: engine.sha256 is " in line


def test_the_command(sdrpn: Command, bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "engines.md"
    assert sdrpn("inspect", bundle, "--engines", "--report", page).code == 0
    assert page.read_text().splitlines()[0] == "# Engines of checkpoint"
    engines, gates = tables(page.read_text())
    assert (len(engines), len(gates)) == (2 + 4, 2 + 1)
    assert refusal(sdrpn("inspect", bundle, "--report", page)) == "--report needs --engines; add it"
    assert "a.txt ends in .txt; expected a name that ends in .md or .html" in refusal(
        sdrpn("inspect", bundle, "--engines", "--report", "a.txt")
    )
