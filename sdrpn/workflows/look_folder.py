"""A folder of looks: a line of JSON per frame, and on request overlays, crops and an annotated video."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL.Image import Image

from sdrpn.errors import BadInput, RunFailed
from sdrpn.frames.annotation import Marks, annotated
from sdrpn.frames.frame import Frame
from sdrpn.frames.source import VIDEO_SUFFIXES
from sdrpn.frames.video import pyav
from sdrpn.frames.video_writer import VideoWriter
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.interrupt import signals_held
from sdrpn.host.line_file import LineFile, disk_advice
from sdrpn.method.geometry import Fit
from sdrpn.workflows.look import FrameLook

__all__ = ["LOOKS_NAME", "LookFolder", "Saved", "numbered_folder"]

LOOKS_NAME = "looks.jsonl"
_PICTURES = "pictures"  # the video of frames without a time
_MOST_VIDEOS = 8  # that are written at once; each holds an encoder
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Saved(CheckedFields):
    """What is written beside the lines of JSON."""

    overlays: bool = False
    crops: bool = False
    video: bool = False


def numbered_folder(base: Path) -> Path:
    """The first of base/1, base/2, ... that is not there; makes none."""
    number = 1
    while (base / str(number)).exists():
        number += 1
    return base / str(number)


class LookFolder:
    """Writes what is found, frame by frame; a context manager. The folder is made with the first frame.

    looks.jsonl: `FrameLook.to_dict` of every frame. overlays/NAME-INDEX.jpg, crops/NAME-INDEX-QUESTION-REGION.jpg and
    NAME.mp4, a video per source; pictures become one, pictures.mp4.
    """

    def __init__(self, folder: Path, saved: Saved, *, fit: Fit = "pad") -> None:
        """Args:
        folder: new or empty
        fit: how a map lies over a frame, see `VisionSpec`
        Raises: BadInput for a folder that has something in it, or is a file; MissingDependency for a video without the
            library that writes it
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} exists and is not an empty folder; name another one, or remove it")
        above = next((parent for parent in folder.parents if parent.exists()), folder.parent)
        if above.is_file():
            raise BadInput(f"{folder} is below {above}, which is a file; name another folder, or rename the file")
        if saved.video:
            pyav("writing videos")
        self.folder, self._saved, self._fit = folder, saved, fit
        self._lines: LineFile | None = None
        self._closing = ExitStack()
        self._names: dict[str, str] = {}  # what files of a source are called, by source
        self._taken: set[str] = set()
        self._videos: OrderedDict[str, VideoWriter] = OrderedDict()

    def __enter__(self) -> LookFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Videos are complete whatever ended the work."""
        with self._closing as closing:
            for video in self._videos.values():
                closing.callback(video.close)

    def add(self, found: FrameLook) -> None:
        """Write all that is asked for of one frame; a signal waits for it. Raises RunFailed where the disk is full."""
        try:
            with signals_held():
                self._add(found)
        except OSError as error:
            raise RunFailed(
                f"{self.folder} cannot be written ({error.strerror or error}); {disk_advice(error)}: frames before are "
                "kept"
            ) from error

    def name_sources(self, sources: Iterable[str]) -> None:
        """Settle what files of sources are called, in this order, whose frames come first."""
        for source in sources:
            self._name_of(source)

    @property
    def renamed(self) -> dict[str, str]:
        """Sources whose files have a number, because others have the same name; and what they are called."""
        return {source: name for source, name in self._names.items() if name != _plain_name(source)}

    def record(self, found: FrameLook) -> dict[str, Any]:
        """A frame's line of JSON: `FrameLook.to_dict`, and what names of its source's files begin with."""
        return {**found.to_dict(), "saved_as": self._name_of(found.frame.source)}

    def _add(self, found: FrameLook) -> None:
        self._opened().append(self.record(found))
        name = self._name_of(found.frame.source)
        if self._saved.crops:
            self._save_crops(found, name)
        if self._saved.overlays or self._saved.video:
            drawn = annotated(found.frame, marks_of(found), fit=self._fit)
            if self._saved.overlays:
                drawn.save(
                    self._below("overlays") / f"{name}-{found.frame.index:06d}.jpg",
                    quality=_JPEG_QUALITY,
                    subsampling=0,
                )
            if self._saved.video:
                self._video_of(found.frame, name).add(drawn, found.frame.time_s)

    def _opened(self) -> LineFile:
        if self._lines is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = LineFile(self.folder / LOOKS_NAME, then="look again", busy="name another folder")
            self._lines = self._closing.enter_context(lines)
        return self._lines

    def _below(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def _save_crops(self, found: FrameLook, name: str) -> None:
        for question, look in enumerate(found.looks, start=1):
            for region in range(len(look.boxes)):
                crop: Image = look.crop(region)
                path = self._below("crops") / f"{name}-{found.frame.index:06d}-{question}-{region + 1}.jpg"
                crop.save(path, quality=_JPEG_QUALITY, subsampling=0)

    def _video_of(self, frame: Frame, name: str) -> VideoWriter:
        key = _PICTURES if frame.time_s is None else name
        video = self._videos.pop(key, None)
        if video is None:
            path = self.folder / f"{_without_video_suffix(key)}.mp4"
            video = VideoWriter(_unused(path), fps=1 if key == _PICTURES else None)
        self._videos[key] = video
        if len(self._videos) > _MOST_VIDEOS:
            self._videos.popitem(last=False)[1].close()
        return video

    def _name_of(self, source: str) -> str:
        """What files of a source are called: its last part, and a number where two have the same."""
        if source not in self._names:
            plain = Path(_plain_name(source))
            numbers = (str(plain if n == 1 else plain.with_stem(f"{plain.stem}_{n}")) for n in itertools.count(1))
            # Also the videos of two sources differ, which have one suffix.
            self._names[source] = next(name for name in numbers if _without_video_suffix(name) not in self._taken)
            self._taken.add(_without_video_suffix(self._names[source]))
        return self._names[source]


def _plain_name(source: str) -> str:
    return re.sub(r"[^\w.-]+", "_", Path(source.rstrip("/")).name).strip("._") or "frames"


def marks_of(found: FrameLook) -> list[Marks]:
    """What is drawn on a frame."""
    return [
        Marks(
            look.question or "",
            [(region.xyxy_px, region.score) for region in look.boxes],
            look.roi_map,
            tuple(dict.fromkeys(region.reason for region in look.dropped)),
        )
        for look in found.looks
    ]


def _without_video_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES else name


def _unused(path: Path) -> Path:
    """A name that no file has: a source may come back after its video was closed."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}_{number}")
    return found
