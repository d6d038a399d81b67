"""Two processes train the RPN that one would: with a copy each, and with shards of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.numpy import load_file

from sdrpn.cli.main import main
from tests.tolerances import SPLIT_STEP_ABS
from tests.train.data import write_labels

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "launch"
SHARDED = ROOT / "tests" / "train" / "sharded_on_cpu.py"
STEPS = 7


def launch(config: str, *command: object, code: int = 0) -> None:
    """Run a command in two processes, with one of the example configs."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    done = subprocess.run(
        [*launcher, "--main_process_port", "0", "--config_file", str(CONFIGS / config), *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode == 0) == (code == 0), done.stderr


def command_for(checkpoint: Path, labels: Path, out: Path) -> tuple[object, ...]:
    """22 pairs in steps of 10, which neither micro-batches nor processes divide evenly."""
    sizes = ("--tap-layer", 2, "--rpn-layers", 2, "--batch", 10, "--micro-batch", 3, "--steps", STEPS)
    where = ("--labels", labels, "--out", out, "--device", "cpu", "--save-every", 3)
    return (checkpoint, *where, "--preset", "tiny", *sizes)


@pytest.fixture(scope="module")
def trained(plain_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of labels, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("trained")
    labels, out = write_labels(folder), folder / "one"
    assert main(["train", *map(str, command_for(plain_checkpoint, labels, out))]) == 0
    return labels, load_file(out / "rpn.safetensors")


def assert_same(out: Path, expected: dict[str, Any]) -> None:
    found = load_file(out / "rpn.safetensors")
    assert found.keys() == expected.keys()
    difference = max(float(np.abs(found[name] - expected[name]).max()) for name in expected)
    assert difference < SPLIT_STEP_ABS, difference


def test_a_copy_in_each(trained: tuple[Path, dict[str, Any]], plain_checkpoint: Path, tmp_path: Path) -> None:
    labels, expected = trained
    launch("ddp.yaml", "-m", "sdrpn.train", *command_for(plain_checkpoint, labels, tmp_path / "two"))
    assert_same(tmp_path / "two", expected)


def test_shards_that_are_cut_off_and_resumed(
    trained: tuple[Path, dict[str, Any]], plain_checkpoint: Path, tmp_path: Path
) -> None:
    labels, expected = trained
    out = tmp_path / "two"
    command = command_for(plain_checkpoint, labels, out)
    launch("fsdp.yaml", SHARDED, 5, *command, code=130)
    assert not (out / "rpn.json").exists()
    assert (out / "state").is_dir()
    launch("fsdp.yaml", SHARDED, -1, *command, "--resume")
    assert_same(out, expected)


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIGS.glob("*.yaml"))])
def test_the_configs_are_read(name: str) -> None:
    config = load_config_from_file(str(CONFIGS / name))
    assert config.num_processes == 4
    assert config.mixed_precision == "no"
