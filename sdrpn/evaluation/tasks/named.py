"""Tasks by name. The module and files of a task are read only when it is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from sdrpn.errors import BadInput
from sdrpn.evaluation.task import Task

__all__ = ["ON_DISK", "open_task"]

# Name -> module and function that reads a folder.
ON_DISK = {
    "textvqa": ("textvqa", "textvqa_task"),
    "docvqa": ("docvqa", "docvqa_task"),
    "infovqa": ("docvqa", "infovqa_task"),
    "chartqa": ("chartqa", "chartqa_task"),
    "ocrbench": ("ocrbench", "ocrbench_task"),
    "pope": ("pope", "pope_task"),
    "vstar": ("vstar", "vstar_task"),
    "hrbench": ("hrbench", "hrbench_task"),
}
DEFAULT_TAGS = 500
UNLABELLED = 64  # how many questions to find a model's attention sinks with


def open_task(name: str, folder: Path | None, split: str | None, samples: int | None, seed: int) -> Task:
    """Open a task.

    Args:
        folder: the folder of its official files; not for tags
        split: for tags (heldout, shifted) and hrbench (4k, 8k)
        samples: only this many questions, from the first
        seed: for tags: which scenes
    Raises BadInput.
    """
    if name == "tags":
        return _tags(folder, split, samples, seed)
    if folder is None:
        raise BadInput(f"the task {name} reads files; name their folder", options=("data",))
    read = _reader(name)
    if name == "hrbench":
        from sdrpn.evaluation.tasks.hrbench import SIZES, hrbench_task

        task = hrbench_task(folder, _chosen(name, split, SIZES))
    elif split is not None:
        raise BadInput(f"the task {name} has no splits to choose from; name none", options=("split",))
    else:
        task = read(folder)
    # Only their attention is used, so the task's own questions can serve.
    return dataclasses.replace(task, samples=task.samples[:samples], unlabelled=task.samples[:UNLABELLED])


def _tags(folder: Path | None, split: str | None, samples: int | None, seed: int) -> Task:
    from sdrpn.evaluation.tasks.tags import SPLITS, tags_task
    from sdrpn.tags.glyphs import require_fonts

    if folder is not None:
        raise BadInput("the task tags renders its scenes and reads no files; name none", options=("data",))
    require_fonts()
    return tags_task(_chosen("tags", split, SPLITS), samples or DEFAULT_TAGS, seed)


def _chosen(name: str, split: str | None, splits: tuple[str, ...]) -> str:
    if split is not None and split not in splits:
        raise BadInput(f"the split is {split!r}; the task {name} has {', '.join(splits)}", options=("split",))
    return split or splits[0]


def _reader(name: str) -> Callable[[Path], Task]:
    module, function = ON_DISK[name]
    reader: Callable[[Path], Task] = getattr(import_module(f"sdrpn.evaluation.tasks.{module}"), function)
    return reader
