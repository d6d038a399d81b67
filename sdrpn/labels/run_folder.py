"""A folder that a long run fills part by part: begun once, and gone on with by the same run alone. Knows no rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_files import differing_keys, read_json_object

__all__ = ["RUN_NAME", "start_run", "write_json"]

RUN_NAME = "run.json"


def start_run(out: Path, provenance: dict[str, Any], parts: str, *, resume: bool) -> None:
    """Create the folder and, in it, that of its parts; or check that it has the same run.

    Raises BadInput for a folder with other content, or a run with other settings.
    """
    if not resume or not (out / RUN_NAME).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise _in_the_way(out, resume=resume)
        write_json(out / RUN_NAME, provenance)
    else:
        known = read_json_object(out / RUN_NAME, "name a new folder")
        differing = differing_keys(json.loads(json.dumps(provenance)), known)
        if differing:
            raise BadInput(
                f"{out} was started with other settings ({', '.join(differing)}); resume with the same ones, or name a "
                "new folder"
            )
    (out / parts).mkdir(exist_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _in_the_way(out: Path, *, resume: bool) -> BadInput:
    if resume:
        return BadInput(f"{out} exists and has no run to resume; name a new folder")
    return BadInput(f"{out} exists and is not empty; name a new folder, or resume its run", options=("resume",))
