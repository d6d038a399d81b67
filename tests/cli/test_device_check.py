"""`sdrpn doctor --device`: a report on stdout, as JSON, as a page, and as a line of a file of results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdrpn.cli.main import main
from sdrpn.reports.device_report import CheckResult
from sdrpn.runtime.checkup import CheckupRequest
from sdrpn.workflows import device_check

GOOD = (
    CheckResult("CUDA", "driver and GPU", "skipped", "this machine shows no NVIDIA GPU", 0.1),
    CheckResult("bundle", "time", "passed", "first token 12 ms", 1.0, {"first_token_ms": 12.0, "token_ms": 1.5}),
)
BAD = (*GOOD, CheckResult("bundle", "memory goes back", "failed", "1 GB did not | come back", 0.2))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[CheckResult]:
    """What the checks find."""
    results: list[CheckResult] = []

    def run_checkup(request: CheckupRequest) -> Iterator[CheckResult]:
        yield from results

    monkeypatch.setattr(device_check, "run_checkup", run_checkup)
    return results


def test_the_machine_is_really_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {result["group"] for result in report["results"]} == {"CUDA", "pictures"}
    assert report["subject"] is None


def test_a_bundle_is_really_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "--bundle", "demo", "--parts", "look", "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["subject"]["bundle"] == "demo"
    looked = [result for result in report["results"] if result["group"] == "bundle"]
    assert [result["state"] for result in looked] == [*["passed"] * 6, "skipped"]
    assert looked[2]["name"] == "a whole look"


def test_a_failure_is_shown_and_exits_1(found: list[CheckResult], capsys: pytest.CaptureFixture[str]) -> None:
    found += BAD
    assert main(["doctor", "--device"]) == 1
    shown = capsys.readouterr().out
    assert "1 passed, 1 failed, 1 skipped" in shown
    assert "1 GB did not | come back" in shown


@pytest.mark.parametrize(("name", "row"), [("a.md", "1 GB did not \\| come back"), ("a.html", '<tr class="failed">')])
def test_a_page_is_written(found: list[CheckResult], tmp_path: Path, name: str, row: str) -> None:
    found += BAD
    assert main(["doctor", "--device", "--bundle", "demo", "--report", str(tmp_path / name)]) == 1
    page = (tmp_path / name).read_text()
    assert row in page
    assert "first_token_ms" in page


def test_a_line_is_recorded_behind_others(found: list[CheckResult], tmp_path: Path) -> None:
    found += GOOD
    path = tmp_path / "devices.jsonl"
    for _ in range(2):
        assert main(["doctor", "--device", "--bundle", "demo", "--record", str(path)]) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2
    assert rows[1]["first_token_ms"] == 12.0
    assert (rows[1]["passed"], rows[1]["failed"], rows[1]["skipped"]) == (1, 0, 1)
    assert rows[1]["subject"]["backend"] == "onnxruntime"
    assert rows[1]["subject"]["bundle"] == "demo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "demo", "--backend", "onnxruntime"], "--backend is given without --device"),
        (["--parts", "look"], "--parts is given without --bundle"),
        (["--bundle", "demo", "--threads", "2"], "--threads is given without --device"),
        (["--device", "--threads", "2"], "--threads is given without --bundle"),
        (["--report", "a.html"], "--report is given without --device"),
        (["--device", "--target", "rtx-4090"], "--target is given without --bundle"),
        (["--device", "--parts", "look"], "--parts is given without --bundle"),
        (["--gpu", "1"], "--gpu is given without --device"),
        (["--device", "--gpu", "-1"], "argument --gpu: -1 is not a device number; expected"),
        (["--device", "--report", "a.pdf"], "expected a name that ends in .md or .html"),
        (["--device", "--bundle", "nowhere"], "nowhere"),
        (["--device", "--bundle", "demo", "--backend", "cpu"], "backend 'cpu' is unknown"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    found: list[CheckResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_this_gpu_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that is not skipped; the report is shown when something fails."""
    code = main(["doctor", "--device", "--bundle", "demo"])
    assert code == 0, capsys.readouterr().out
