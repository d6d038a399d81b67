"""A folder that a long run fills file by file, in one process or several; each finishes what it begins.

Knows neither what is asked nor what the rows say: the caller makes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_files import read_json_object
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.shared_run import RUN_NAME, run_lock, start_run
from sdrpn.labels.shards import shard_path, write_shard

__all__ = ["RUN_NAME", "fill_folder", "write_json"]

Question = TypeVar("Question")


def fill_folder(
    out: Path,
    name: str,
    columns: dict[str, str],
    provenance: dict[str, Any],
    questions: Sequence[Question],
    rows_of: Callable[[Sequence[Question]], Sequence[dict[str, Any]]],
    last_name: str,
    finish: Callable[[], dict[str, Any]],
    *,
    per_file: int,
    at_once: int = 1,
    resume: bool = False,
    part: Part = WHOLE,
    progress: Advance = unseen,
) -> dict[str, Any] | None:
    """Write the rows of all questions to `out/name/part-*.parquet`, but for those that are there; then finish once.

    Args:
        provenance: what decides the rows; only a run with the same goes on with a folder
        rows_of: a row for each of up to `at_once` questions
        last_name: the folder's last file, of an object
        finish: makes the rest, and returns what it wrote there; called by one process alone
        per_file: questions
        part: which files are written here, of several processes that share the folder
    Returns: what is in the last file; None while files of other parts are missing
    Raises: BadInput for a folder with other content
    """
    start_run(out, provenance, resume=resume, shared=not part.is_whole)
    (out / name).mkdir(exist_ok=True)
    starts = range(0, len(questions), per_file)
    paths = [shard_path(out / name, index) for index in range(len(starts))]
    for index, start in enumerate(starts):
        if not part.owns(index) or paths[index].exists():
            continue
        asked, rows = questions[start : start + per_file], list[dict[str, Any]]()
        for first in range(0, len(asked), at_once):
            rows += rows_of(asked[first : first + at_once])
            progress(start + len(rows), len(questions))
        write_shard(paths[index], columns, rows, provenance)
    if not all(path.exists() for path in paths):
        return None
    with run_lock(out) if not part.is_whole else nullcontext():
        if not part.is_whole and (out / last_name).is_file():  # another process was faster
            return read_json_object(out / last_name, "remove it and run again")
        return finish()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
