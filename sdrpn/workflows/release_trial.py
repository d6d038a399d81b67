"""Run a release once before a device changes to it: in a process of its own, which may crash."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import SdrpnError
from sdrpn.host.json_reader import read_dataclass
from sdrpn.host.library_versions import library_versions
from sdrpn.release.store_state import TrialRecord
from sdrpn.runtime import Session

__all__ = ["TRIAL_PASSED", "report_trial", "try_release"]

TRIAL_PASSED = "passed"
_TIMEOUT_S = 900.0
_TOKENS = 4
_CHILD = "import sys; from sdrpn.workflows.release_trial import report_trial; report_trial(sys.argv[1], sys.argv[2])"


def try_release(bundle: Path, target: str | None = None, *, timeout_s: float = _TIMEOUT_S) -> TrialRecord:
    """Open a bundle and let it answer once. What goes wrong is in the record's state, which begins with "failed: ".

    Args: target: the engines that have to run; None: what a session chooses
    """
    command = [sys.executable, "-c", _CHILD, str(bundle), target or ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return TrialRecord(f"failed: it did not answer within {timeout_s:g} s")
    if done.returncode != 0:
        last = next(reversed(done.stderr.strip().splitlines()), f"its process ended with {done.returncode}")
        return TrialRecord(f"failed: {last}")
    return read_dataclass(TrialRecord, json.loads(done.stdout.splitlines()[-1]))


def report_trial(bundle: str, target: str) -> None:
    """What runs in the process: print the record as JSON."""
    sys.stdout.write(f"{json.dumps(dataclasses.asdict(_tried(Path(bundle), target or None)))}\n")


def _tried(bundle: Path, target: str | None) -> TrialRecord:
    started = time.monotonic()
    try:
        has_words = open_bundle(bundle).manifest.tokenizer is not None
        with Session.open(bundle, target=target) as session:
            picture = _picture()
            if has_words:
                answer = session.answer(picture, "what is this ?", max_new_tokens=_TOKENS)
            else:
                answer = session.answer_ids(picture, (1,), (2, 3), max_new_tokens=_TOKENS)
            shown = f"{session.backend} {session.variant.name}"
    except SdrpnError as error:
        return TrialRecord(f"failed: {' '.join(str(error).split())}")
    if answer.roi_map is not None and not np.isfinite(answer.roi_map).all():
        return TrialRecord("failed: its map has numbers that are not finite")
    return TrialRecord(TRIAL_PASSED, round(time.monotonic() - started, 3), shown, library_versions())


def _picture() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture that is not a plain one: two gradients."""
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    return np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[::-1], (64, 1)), np.full((64, 96), 128, np.uint8)], axis=-1)
