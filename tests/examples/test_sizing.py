"""The simulation of examples/sizing on loads whose answer is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import script_module
from tests.sources import ROOT

SCRIPT = ROOT / "examples" / "sizing" / "simulate.py"


@pytest.fixture(scope="module")
def simulate() -> ModuleType:
    return script_module("examples/sizing/simulate.py")


def times(simulate: ModuleType, **changes: Any) -> Any:
    given: dict[str, Any] = {"first_s": 1.0, "known_s": 0.25, "step_s": (0.1, 0.125), "stall_s": 100.0}
    return simulate.Times(**(given | changes))


def asked(simulate: ModuleType, *entries: tuple[float, str, int]) -> list[Any]:
    return [simulate.Asked(*entry) for entry in entries]


def test_one_request_alone(simulate: ModuleType) -> None:
    found = simulate.simulate(asked(simulate, (5.0, "a", 4)), times(simulate, beside_s=0.5), 1)
    assert found.first_token_s == [pytest.approx(1.5)]
    assert found.latency_s == [pytest.approx(1.8)]  # three steps after the first token
    assert found.utilisation == [pytest.approx(1.3 / 1.8)]


def test_a_picture_that_is_known(simulate: ModuleType) -> None:
    trace = asked(simulate, (0.0, "a", 1), (10.0, "a", 1), (20.0, "b", 1), (30.0, "a", 1))
    found = simulate.simulate(trace, times(simulate), 1)
    assert found.latency_s == pytest.approx([1.0, 0.25, 1.0, 0.25])
    assert found.known == 0.5
    forgetful = simulate.simulate(trace, times(simulate, pictures=1), 1)
    assert forgetful.latency_s == pytest.approx([1.0, 0.25, 1.0, 1.0])


def test_a_core_that_also_opens_pictures(simulate: ModuleType) -> None:
    trace = asked(simulate, (5.0, "a", 2), (5.2, "b", 1))
    found = simulate.simulate(trace, times(simulate, beside_s=0.5, one_core=True), 1)
    # 0.5 s beside for each, for the second came meanwhile; both prefills of 1 s, and the step of the first.
    assert found.first_token_s == pytest.approx([2.0, 2.8])
    assert found.latency_s == pytest.approx([3.1, 2.8])
    assert found.utilisation == [pytest.approx(1.0)]


def test_replicas_that_share_a_machine(simulate: ModuleType) -> None:
    own = times(simulate, together=2.0)
    replicas = {simulate.replica_of(name, 2): name for name in "abcdef"}
    alone = simulate.simulate(asked(simulate, (0.0, replicas[0], 1)), own, 2)
    assert alone.latency_s == pytest.approx([1.0])
    both = simulate.simulate(asked(simulate, (0.0, replicas[0], 1), (0.5, replicas[1], 1)), own, 2)
    # Half of the first's work alone, the rest at half the speed; then the second is alone again.
    assert both.latency_s == pytest.approx([1.5, 1.5])
    assert both.utilisation == pytest.approx([0.75, 0.75])
    with pytest.raises(ValueError, match="together has to be at least 1"):
        times(simulate, together=0.5)


def test_answers_that_run_share_steps(simulate: ModuleType) -> None:
    found = simulate.simulate(asked(simulate, (0.0, "a", 3), (0.0, "b", 3)), times(simulate), 1)
    # Two prefills, then two steps of both; the first waits for the second's prefill.
    assert found.first_token_s == pytest.approx([1.0, 2.0])
    assert found.latency_s == pytest.approx([2.25, 2.25])


def test_a_third_one_waits_for_a_place(simulate: ModuleType) -> None:
    trace = asked(simulate, (0.0, "a", 2), (0.0, "b", 3), (0.0, "c", 1))
    found = simulate.simulate(trace, times(simulate), 1)
    assert found.latency_s[0] == pytest.approx(2.125)
    assert found.first_token_s[2] == pytest.approx(3.125)  # before the next step of b
    assert found.latency_s[1] == pytest.approx(3.225)


def test_long_prefills_are_divided(simulate: ModuleType) -> None:
    trace = asked(simulate, (0.0, "a", 3), (0.5, "b", 1))
    whole = simulate.simulate(trace, times(simulate), 1)
    divided = simulate.simulate(trace, times(simulate, stall_s=0.25), 1)
    assert whole.latency_s == pytest.approx([2.2, 1.5])
    assert divided.latency_s == pytest.approx([1.7, 1.7])  # two steps between the parts of the other's prefill


def test_replicas_share_the_load(simulate: ModuleType) -> None:
    trace = simulate.random_trace(1.0, 200, 50, 4, seed=3)
    found = {count: simulate.simulate(trace, times(simulate), count) for count in (1, 2, 4)}
    assert len(trace) == pytest.approx(200, rel=0.25)
    p95 = [simulate.percentile(found[count].latency_s, 95) for count in (1, 2, 4)]
    assert p95 == sorted(p95, reverse=True)
    for count, outcome in found.items():
        assert outcome.span_s * sum(outcome.utilisation) <= outcome.span_s * count
    in_turns = simulate.simulate(trace, times(simulate), 4, "turns")
    assert in_turns.known < found[4].known  # a picture is new to each replica


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2), (75, 3), (76, 4), (100, 4)])
def test_percentiles(simulate: ModuleType, percent: float, expected: float) -> None:
    assert simulate.percentile([4, 2, 1, 3], percent) == expected


def test_nothing_was_asked(simulate: ModuleType) -> None:
    assert simulate.simulate([], times(simulate), 2).to_json()["requests"] == 0


def test_times_that_cannot_be(simulate: ModuleType) -> None:
    with pytest.raises(ValueError, match="above 0"):
        times(simulate, step_s=())


def test_the_command(simulate: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(json.dumps({"first_s": 1, "known_s": 0.2, "step_s": [0.1], "pictures": 3}))
    lines = [{"at_s": number / 2, "picture": number % 3, "tokens": 2} for number in range(20)]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "times.json"), "--trace", str(tmp_path / "trace.jsonl")]
    done = subprocess.run([*command, "--replicas", "1", "2", "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert list(found) == ["format_version", "replicas"]
    assert {count: entry["requests"] for count, entry in found["replicas"].items()} == {"1": 20, "2": 20}
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(table) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nowhere.json",), "nowhere.json is not what measure.py writes (FileNotFoundError"),
        (("{broken}",), "is not what measure.py writes (KeyError('step_s')): make it with measure.py --out"),
        (("{times}", "--trace", "nowhere.jsonl"), "nowhere.jsonl is no trace (FileNotFoundError"),
        (("{times}", "--trace", "{broken}"), "is no trace (KeyError('at_s')); expected lines with at_s, picture and"),
        (("{times}", "--rate", "0"), "argument --rate: '0' is not a number above 0"),
        (("{times}", "--rate", "often"), "argument --rate: 'often' is not a number above 0"),
        (("{times}", "--replicas", "2", "0"), "argument --replicas: '0' is not a whole number of at least 1"),
    ],
)
def test_what_the_command_refuses(
    simulate: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    files = {"times": tmp_path / "times.json", "broken": tmp_path / "broken.json"}
    files["times"].write_text(json.dumps({"first_s": 1, "known_s": 0.2, "step_s": [0.1], "pictures": 3}))
    files["broken"].write_text(json.dumps({"first_s": 1}))
    monkeypatch.setattr(sys, "argv", ["simulate.py", *(option.format(**files) for option in options)])
    with pytest.raises(SystemExit) as ended:
        simulate.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
