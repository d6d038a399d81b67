"""What ends a child process is a result, and the groups after it are still checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.reports.device_report import CheckResult
from sdrpn.runtime.checkup import CheckupRequest, run_checkup
from sdrpn.runtime.checkup.groups import GROUPS, STEP_COUNTS, steps_of

CHILD = """
import json, os, signal, sys, time
group, events = sys.argv[1], os.fdopen(int(sys.argv[2]), "w")
def report(**event):
    print(json.dumps(event), file=events, flush=True)
report(steps=["one", "two", "three"])
report(begin="one")
report(result=dict(group=group, name="one", state="passed", detail="", seconds=0.0, figures={}))
report(begin="two")
print("what the library said last")
sys.stdout.flush()
"""


def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, **request: float) -> list[CheckResult]:
    (tmp_path / "fake_checkup.py").write_text(CHILD + ending)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return list(run_checkup(CheckupRequest(**request), module="fake_checkup"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ending", "detail"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process crashed with SIGSEGV: what the library said last"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "when memory runs out: what the library said last"),
        ("os._exit(3)", "the process ended with exit code 3: what the library said last"),
        ("os._exit(0)", "the process ended with exit code 0: what the library said last"),
    ],
)
def test_a_child_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, detail: str) -> None:
    found = results(tmp_path, monkeypatch, ending)
    for group in ("CUDA", "pictures"):
        own = [(result.name, result.state) for result in found if result.group == group]
        assert own == [("one", "passed"), ("two", "failed"), ("three", "skipped")]
    assert detail in found[1].detail
    assert found[2].detail == "the step before, 'two', ended the process"


def test_a_step_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(tmp_path, monkeypatch, "time.sleep(600)", step_limit_s=1.5)
    assert found[1].detail == "it did not end within 1.5 s"


def test_a_child_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_checkup.py").write_text("import no_such_library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = next(run_checkup(CheckupRequest(), module="fake_checkup"))
    assert (first.name, first.state) == ("start", "failed")
    assert "no_such_library" in first.detail


def test_a_bundle_that_cannot_be_opened_is_a_result(tmp_path: Path) -> None:
    found = [result for result in run_checkup(CheckupRequest(bundle=str(tmp_path))) if result.group == "bundle"]
    assert [(result.name, result.state) for result in found] == [("open", "failed")]
    assert "manifest.json" in found[0].detail


def test_requests_are_checked() -> None:
    assert CheckupRequest().groups == ("CUDA", "pictures")
    assert CheckupRequest(bundle="x").step_count == sum(STEP_COUNTS.values())
    assert set(STEP_COUNTS) == set(GROUPS)
    with pytest.raises(BadInput, match="expected seconds above 0"):
        CheckupRequest(step_limit_s=0)
    with pytest.raises(BadInput, match="the first of which is 0"):
        CheckupRequest(gpu=-1)
    with pytest.raises(BadInput, match="threads is 257; expected 1 to 256"):
        CheckupRequest(threads=257)
    with pytest.raises(BadInput, match="group 'fans' is unknown"):
        steps_of("fans", CheckupRequest())


def test_the_child_does_not_print(tiny_bundle: Path) -> None:
    """Its results go to the descriptor alone."""
    done = subprocess.run(
        [sys.executable, "-m", "sdrpn.runtime.checkup", "pictures", "1"],
        input="{}",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith('{"steps": ')
    assert len(done.stdout.splitlines()) == 1 + 2 * STEP_COUNTS["pictures"]
