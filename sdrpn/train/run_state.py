"""The state from which an interrupted training resumes: weights, optimizer and history, written atomically.

Every process writes its part through Accelerate; one creates the folder, which must be visible to all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from sdrpn.errors import BadInput
from sdrpn.host.atomic import replacing_directory, replacing_file
from sdrpn.host.json_files import differing_keys, read_json_object
from sdrpn.train.loop import Validation
from sdrpn.train.quality import AtThreshold, Quality

__all__ = ["STATE", "History", "load_state", "note_run", "require_startable", "save_state"]

RUN_NAME, STATE, HISTORY_NAME = "run.json", "state", "history.json"


@dataclass
class History:
    """The history of a training so far."""

    losses: list[float] = field(default_factory=list)  # of every step
    validations: list[Validation] = field(default_factory=list)
    seconds: float = 0.0


def require_startable(out: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Raise BadInput for a folder with anything but the run to resume, or with a finished training."""
    if not resume and (out / RUN_NAME).is_file() and not (out / "rpn.json").is_file():
        raise BadInput(f"{out} has an unfinished training; resume it, or name a new folder", options=("resume",))
    problem = _problem(out, json.loads(json.dumps(run)))  # tuples as JSON has them
    if problem is not None:
        raise BadInput(problem)


def note_run(out: Path, run: dict[str, Any]) -> None:
    """Create the folder, and write the settings of the run to it."""
    with replacing_file(out / RUN_NAME) as path:
        path.write_text(json.dumps(run, indent=1) + "\n", "utf-8")


def _problem(out: Path, run: dict[str, Any]) -> str | None:
    begun = (out / RUN_NAME).is_file()
    if not begun:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            return f"{out} exists and has no training; name a new folder"
        return None
    if (out / "rpn.json").is_file():
        return f"{out} has a finished training; name a new folder"
    differing = differing_keys(run, read_json_object(out / RUN_NAME, "name a new folder"))
    if not differing:
        return None
    return f"{out} was started with other settings ({', '.join(differing)}); resume with the same, or name a new folder"


class Loop(Protocol):
    """A training whose modules and optimizer an accelerator has prepared."""

    step: int  # the number of completed steps


def save_state(out: Path, loop: Loop, history: History, accelerator: Accelerator) -> None:
    """Write the state after the loop's step, replacing an older one. Every process calls this."""
    with _shared_folder(out / STATE, accelerator) as folder:
        accelerator.save_state(str(folder))
        if accelerator.is_main_process:
            value = {"step": loop.step, **dataclasses.asdict(history)}
            (folder / HISTORY_NAME).write_text(json.dumps(value) + "\n", "utf-8")


def load_state(out: Path, loop: Loop, accelerator: Accelerator) -> History:
    """Restore the state in the folder; returns a new history where none was written yet."""
    folder = out / STATE
    if not (folder / HISTORY_NAME).is_file():
        return History()
    value = read_json_object(folder / HISTORY_NAME, f"remove {folder} to start again")
    try:
        accelerator.load_state(str(folder))
        loop.step = int(value["step"])
        return History(
            value["losses"], [_validation(validation) for validation in value["validations"]], value["seconds"]
        )
    except Exception as error:  # readers of a truncated file raise exceptions of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{folder} cannot be read ({reason}); remove it to start again") from error


@contextmanager
def _shared_folder(path: Path, accelerator: Accelerator) -> Iterator[Path]:
    """`replacing_directory` in the main process, with the same temporary name in all processes."""
    replacing = replacing_directory(path, exist_ok=True) if accelerator.is_main_process else nullcontext(path)
    with replacing as temporary:
        (name,) = broadcast_object_list([str(temporary)])
        yield Path(name)
        accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()


def _validation(value: dict[str, Any]) -> Validation:
    """The inverse of dataclasses.asdict."""
    quality = value["quality"] | {
        "thresholds": tuple(AtThreshold(**threshold) for threshold in value["quality"]["thresholds"]),
        "curve": tuple((recall, precision) for recall, precision in value["quality"]["curve"]),
    }
    return Validation(**value | {"quality": Quality(**quality)})
