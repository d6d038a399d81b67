"""Files as a source: one picture, or the pictures and videos of a folder, a pattern or a list, one after the other."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sdrpn.errors import BadImage, BadInput, MissingDependency
from sdrpn.frames.frame import Pixels
from sdrpn.frames.raw import OpenSource, RawFrame
from sdrpn.frames.source import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Source, read_source
from sdrpn.host.suggestion import did_you_mean_path
from sdrpn.images.image import open_image

__all__ = ["FileSequence", "OnePicture", "files_of"]

OpenVideo = Callable[[Path], OpenSource]
_FEW = 3  # names in a message
_MOST_LIST_BYTES = 64_000_000


class OnePicture:
    """A picture's file, or the content of one, as a source of one frame."""

    live = False

    def __init__(self, picture: Path | bytes) -> None:
        self._picture = picture

    def frames(self) -> Iterator[RawFrame]:
        """The picture."""
        yield RawFrame(lambda: picture_pixels(self._picture))

    def close(self) -> None:
        """Nothing is held."""


class FileSequence:
    """Pictures and videos in order; each is opened when it is its turn."""

    live = False

    def __init__(self, paths: Sequence[Path], open_video: OpenVideo) -> None:
        self._paths, self._open_video = paths, open_video
        self._video: OpenSource | None = None

    def frames(self) -> Iterator[RawFrame]:
        """Every picture, and every frame of every video, with the file's name."""
        for number, path in enumerate(self._paths):
            if is_video(path):
                yield from self._frames_of(path)
            else:
                yield _picture_frame(path, number)

    def close(self) -> None:
        """Close the video that is being read."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def _frames_of(self, path: Path) -> Iterator[RawFrame]:
        index = 0
        try:
            self._video = self._open_video(path)
            for frame in self._video.frames():
                yield replace(frame, name=str(path), index=index)
                index += 1
        except MissingDependency:
            raise
        except BadInput as error:  # others follow: it is passed over like a picture that cannot be read
            yield RawFrame(partial(_raise, BadImage(str(error))), name=str(path), index=index)
        self.close()


def files_of(source: Source) -> list[Path]:
    """The pictures and videos that a folder, a pattern or a list stands for, in the order in which people count.

    Raises: BadInput where there is none, or a list names something else.
    """
    if source.kind == "folder":
        return _files_in(Path(source.place))
    if source.kind == "pattern":
        return _files_like(source.place)
    return _files_listed(Path(source.place))


def is_video(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def picture_pixels(picture: Path | bytes) -> Pixels:
    """A picture's file or its content, upright. Raises BadImage."""
    return np.asarray(open_image(picture))


def _raise(error: BadImage) -> Pixels:
    raise error


def _picture_frame(path: Path, index: int) -> RawFrame:
    return RawFrame(lambda: picture_pixels(path), name=str(path), index=index)


def _files_in(folder: Path) -> list[Path]:
    try:
        everything = [path for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise BadInput(f"{folder} cannot be read ({error.strerror}); name a folder that you may open") from error
    found = _known(everything)
    if not found:
        raise BadInput(
            f"{folder} holds no picture and no video ({_seen(everything)}); expected files that end in .jpg, .png, "
            ".mp4 and such; folders below it are found by a pattern, '**/*.jpg'"
        )
    return found


def _files_like(pattern: str) -> list[Path]:
    everything = [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]  # noqa: PTH207
    if not everything:
        folder = next(parent for parent in Path(pattern).parents if not glob.has_magic(str(parent)))
        missing = "" if folder.is_dir() else f"; the folder {folder} does not exist{did_you_mean_path(folder)}"
        raise BadInput(f"the pattern {pattern!r} matches no file{missing}; expected a pattern such as 'shots/*.jpg'")
    found = _known(everything)
    if not found:
        raise BadInput(f"the pattern {pattern!r} matches no picture and no video ({_seen(everything)}); name others")
    return found


def _files_listed(path: Path) -> list[Path]:
    """Files of a list in its order; names are relative to its folder, `#` begins a comment."""
    found: list[Path] = []
    for number, line in enumerate(_lines(path), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        source = read_source(str(path.parent / name) if _is_path(name) else name)
        if source.is_live or source.kind in ("list", "stdin"):
            raise BadInput(
                f"{path} line {number} names {source.name}, a {source.kind}; expected pictures, videos, folders and "
                "patterns: pass cameras and streams as sources of their own"
            )
        if source.kind in ("picture", "video"):
            found.append(Path(source.place))
        else:
            found += files_of(source)
    if not found:
        raise BadInput(f"{path} lists no file; expected one path per line")
    return found


def _is_path(name: str) -> bool:
    """Whether a line of a list is a path, which may be relative, and no camera, URL or standard input."""
    return read_source(name).kind not in ("camera", "stream", "stdin")


def _lines(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path} is not a regular file; expected a list of pictures and videos")
        if path.stat().st_size > _MOST_LIST_BYTES:
            raise BadInput(f"{path} has more than {_MOST_LIST_BYTES:,} bytes; expected a list, one path per line")
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist; expected a list of sources{did_you_mean_path(path)}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not text in UTF-8; expected a list, one path per line") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); name a list that you may open") from error


def _known(paths: Iterable[Path]) -> list[Path]:
    known = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    return sorted((path for path in paths if path.suffix.lower() in known), key=_as_counted)


def _as_counted(path: Path) -> list[tuple[int, str]]:
    """A key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts if part]


def _seen(paths: Sequence[Path]) -> str:
    if not paths:
        return "it is empty"
    names = ", ".join(sorted(path.name for path in paths)[:_FEW])
    return f"it has {names}{' and others' if len(paths) > _FEW else ''}"
