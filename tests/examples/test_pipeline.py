"""The whole way to the small model, a little of everything: it runs, and an RPN learns something real on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdrpn.checkpoint import read_rpn

pytest.importorskip("torch")
pytest.importorskip("transformers")

# Of a model this small a second thread mostly waits for the first.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PIPELINE = Path(__file__).parents[2] / "examples" / "tiny" / "pipeline.py"
# The first run is the same steps in one process: ten imports of PyTorch would be a third of its time.
IN_ONE_PROCESS = Path(__file__).with_name("pipeline_in_one_process.py")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("pipeline")
    done = run(IN_ONE_PROCESS, out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_the_rpn_learns_what_the_model_s_attention_says(runs: Path) -> None:
    """On labels that were held out: the loss falls well below what it began with, and boxes beat one in the middle."""
    validations = read(runs / "rpn-0" / "training.json")["validations"]
    first, last = validations[0], validations[-1]
    assert last["loss"] < 0.7 * first["loss"]
    best = max(threshold["box_iou"] for threshold in last["quality"]["thresholds"])
    assert best > 1.5 * last["quality"]["centre_box_iou"]
    policy = read_rpn(runs / "rpn-0").policy
    assert policy is not None
    assert policy.origin == "labels"
    (chosen,) = [row for row in last["quality"]["thresholds"] if row["threshold"] == policy.roi.threshold]
    assert chosen["box_iou"] == best


def test_base_training_goes_on_from_the_shipped_weights(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "F" / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines
    assert all(0 < line["loss"] < 3 for line in lines)  # random weights have more than 4


def test_every_method_answered_every_question(runs: Path) -> None:
    for split in ("heldout", "shifted"):
        results = read(runs / f"eval-{split}" / "results.json")
        assert {"plain", "sdrpn", "attention-crop", "oracle-crop", "blind"} <= set(results["methods"])
        assert all(method["accuracy"] >= 0 for method in results["methods"].values())
        assert (runs / f"eval-{split}" / "results.md").is_file()


def test_a_second_run_does_nothing_again(runs: Path) -> None:
    """This one as a user starts it: only the two steps that know themselves how far they are become processes."""
    before = (runs / "rpn-0" / "rpn.safetensors").stat().st_mtime_ns
    done = run(PIPELINE, "--out", runs, "--reduced")
    assert done.returncode == 0, done.stderr[-2000:]
    commands = [line for line in done.stdout.splitlines() if "$ " in line]
    assert ["train_finding.py" in commands[0], " label " in commands[1], len(commands)] == [True, True, 2]
    assert (runs / "rpn-0" / "rpn.safetensors").stat().st_mtime_ns == before
