"""A folder that one run writes to, or several processes of it, on one machine or many; knows nothing of the content.

`run.json` holds the settings of the run: only a run with the same ones joins or continues it. What must happen once
is done under a lock, which the system releases when its holder ends in any way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.file_lock import lock_file
from sdrpn.host.json_files import differing_keys, read_json_object

__all__ = ["RUN_NAME", "run_lock", "start_run"]

RUN_NAME, LOCK_NAME = "run.json", ".lock"


def start_run(folder: Path, settings: dict[str, Any], *, resume: bool = False, shared: bool = False) -> None:
    """Create the folder with its `run.json`, or check that it has the same run.

    Args:
        resume: continue a run that is there; it may also be new
        shared: other processes may have created it a moment ago
    Raises: BadInput for a folder with other content, or with a run that has other settings or is not to be continued
    """
    if not shared:
        return _start(folder, settings, joins=resume, resume=resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file, or no write permission
        raise BadInput(f"{folder} cannot be a folder of a run ({error.strerror}); name a new folder") from error
    with run_lock(folder):
        return _start(folder, settings, joins=True, resume=resume)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock inside the block, waiting for it; no lock where the file system has none."""
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        lock_file(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _start(folder: Path, settings: dict[str, Any], *, joins: bool, resume: bool) -> None:
    run, settings = folder / RUN_NAME, json.loads(json.dumps(settings))
    if not run.is_file():
        if folder.exists() and (not folder.is_dir() or any(not _is_ours(path) for path in folder.iterdir())):
            raise _in_the_way(folder, resume=resume)
        with replacing_file(run) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        return
    if not joins:
        raise BadInput(f"{folder} already holds a run; resume it, or name a new folder", options=("resume",))
    differing = differing_keys(settings, read_json_object(run, "name a new folder"))
    if differing:
        raise BadInput(
            f"{folder} was started with other settings ({', '.join(differing)}); resume with the same ones, or name a "
            "new folder"
        )


def _is_ours(path: Path) -> bool:
    """Whether a file may lie in a folder that is still new: the lock, or what a killed process left of `run.json`."""
    return path.name == LOCK_NAME or (path.name.startswith(f".{RUN_NAME}.") and path.suffix == ".partial")


def _in_the_way(folder: Path, *, resume: bool) -> BadInput:
    if resume:
        return BadInput(f"{folder} exists and has no run to resume; name a new folder")
    return BadInput(f"{folder} exists and is not the folder of a run; name a new folder")
