"""The reduced pipeline with every command in this process, so that PyTorch is imported once and not ten times.

pipeline_in_one_process.py OUT
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

from sdrpn.cli.main import main
from sdrpn.evaluation.tasks import tags

TINY = Path(__file__).parents[2] / "examples" / "tiny"


def run_here(command: tuple[str, ...]) -> int:
    """`sdrpn VERB ...` or a script, without its interpreter; the exit code."""
    _, *words = command
    if words[:2] == ["-m", "sdrpn.cli.main"]:
        return main(words[2:])
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(TINY))  # where the scripts find each other
    tags.UNLABELLED = 16  # questions for an automatic threshold, of which two evaluations take 64 otherwise
    pipeline = importlib.import_module("pipeline")
    sys.exit(pipeline.run_steps(pipeline.steps(Path(sys.argv[1]), pipeline.REDUCED), run_here))
