"""A folder that a long run fills file by file, in one process or several; each finishes what it begins.

Knows neither what is asked nor what the rows say: the caller makes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_files import read_json_object
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.shared_run import RUN_NAME, run_lock, start_run
from sdrpn.labels.shards import shard_path, write_shard

__all__ = ["RUN_NAME", "finishing", "gather_rows", "write_json"]

Question = TypeVar("Question")


def gather_rows(
    out: Path,
    name: str,
    columns: dict[str, str],
    provenance: dict[str, Any],
    questions: Sequence[Question],
    rows_of: Callable[[Sequence[Question]], Sequence[dict[str, Any]]],
    *,
    per_file: int,
    at_once: int = 1,
    resume: bool = False,
    part: Part = WHOLE,
    progress: Advance = unseen,
) -> bool:
    """Write the rows of all questions to the files `out/name/part-*.parquet`, but for those that are there.

    Args:
        provenance: what decides the rows; only a run with the same goes on with a folder
        rows_of: a row for each of up to `at_once` questions
        per_file: questions
        part: which files are written here, of several processes that share the folder
    Returns: whether all files are there
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
    return all(path.exists() for path in paths)


@contextmanager
def finishing(out: Path, name: str, part: Part) -> Iterator[dict[str, Any] | None]:
    """A block that one process alone runs at a time, to write `name` as its last file.

    Yields what another process of the run wrote there meanwhile; None: it has yet to be written.
    """
    if part.is_whole:
        yield None
        return
    with run_lock(out):
        yield read_json_object(out / name, "remove it and run again") if (out / name).is_file() else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
