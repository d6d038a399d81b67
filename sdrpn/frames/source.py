"""What a SOURCE means: the text that a user writes, as one of a few kinds. Opens nothing but a list of sources."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from sdrpn.errors import BadInput
from sdrpn.host.suggestion import did_you_mean

__all__ = [
    "PICTURE_SUFFIXES",
    "STDIN",
    "VIDEO_SUFFIXES",
    "Given",
    "Source",
    "SourceKind",
    "host_of",
    "read_source",
    "source_of",
    "sources_of",
    "without_password",
]

SourceKind: TypeAlias = Literal["picture", "folder", "pattern", "list", "video", "camera", "stream", "stdin"]
# How a caller names a source: a text as a user writes it, the path of a file or a folder, the number of a camera.
Given: TypeAlias = str | Path | int

STDIN = "-"
_PICTURES = """
.jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2 .j2k .ico .qoi .heic .heif
"""
_VIDEOS = """
.mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .wmv .asf .flv .3gp .ogv .mjpeg .mjpg .h264 .264 .h265 .hevc
.y4m
"""
PICTURE_SUFFIXES, VIDEO_SUFFIXES = frozenset(_PICTURES.split()), frozenset(_VIDEOS.split())
LIST_SUFFIX = ".txt"
# What FFmpeg reads over a network; a name with another scheme is most likely mistyped.
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "rtp", "srt")
_USUAL = ("rtsp", "http", "https")
# Without a host the others listen.
_WITH_HOST = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CAMERA = re.compile(r"\d{1,3}|/dev/video\d+")
_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@")
_WILDCARDS = frozenset("*?[")
_EXPECTED = "expected a text (a picture, folder, pattern, video, camera or URL), a Path, or the number of a camera"


@dataclass(frozen=True)
class Source:
    """One source. `place` is what is opened: a path, a URL with its password, the device of a camera."""

    kind: SourceKind
    place: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(SourceKind):
            raise BadInput(f"kind is {self.kind!r}; expected one of {', '.join(get_args(SourceKind))}")

    @property
    def name(self) -> str:
        """How messages and results name it: without a password."""
        return without_password(self.place)

    @property
    def is_live(self) -> bool:
        """Whether it is a camera or a stream, which go on while nobody reads them."""
        return self.kind in ("camera", "stream")


def read_source(text: str) -> Source:
    """What a text names.

    `-`: a picture on standard input. A number or /dev/videoN: a camera. A URL: a stream. Else a path: of a folder, of a
    list of sources (.txt), of a video (by its suffix), of a picture; or a pattern with `*`, `?` or `[`. A file that is
    named like something else is meant with a folder before its name: ./0, ./-.
    Raises: BadInput for a text that is empty, or a URL of an unknown kind.
    """
    if not text.strip():
        raise BadInput(f"a source is empty (got {text!r}); expected a picture, folder, pattern, video, camera or URL")
    if text == STDIN:
        return Source("stdin", text)
    if _CAMERA.fullmatch(text):
        return Source("camera", text)
    if scheme := _URL.match(text):
        return Source("stream", _checked_url(text, scheme.group(1).lower()))
    return Source(_kind_of_path(text), text)


def source_of(given: object) -> Source:
    """What a caller names. A Path is always a file, a folder or a pattern: Path("0") is the file 0, and 0 the camera.

    Raises: BadInput for what is neither a text, nor a Path, nor a number from 0, and as `read_source`.
    """
    if isinstance(given, str):
        return read_source(given)
    if isinstance(given, Path):
        return Source(_kind_of_path(str(given)), str(given))
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return read_source(str(given))
    raise BadInput(f"a source is {given!r}; {_EXPECTED}")


def sources_of(given: object) -> list[Source]:
    """One source, or those of a list or tuple, in order.

    Raises: BadInput as `source_of`, and for a source that is named twice: results are kept by source
    """
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes, bytearray, memoryview)):
        return [source_of(given)]
    sources = [source_of(each) for each in given]
    for source in sources:
        if sources.count(source) > 1:
            name = "standard input" if source.kind == "stdin" else source.name
            raise BadInput(f"{name} is named twice; expected every source once")
    return sources


def without_password(text: str) -> str:
    """A URL without the password that stands in it; any other text as it is."""
    return _PASSWORD.sub(r"\1:***@", text)


def host_of(url: str) -> str | None:
    """The host that a URL names; None: it names none."""
    try:
        return urlsplit(url).hostname if "://" in url else None
    except ValueError:  # an address in brackets that are not closed
        return None


def _checked_url(text: str, scheme: str) -> str:
    if scheme in _WITH_HOST and host_of(text) is None:
        raise BadInput(f"{without_password(text)} names no host; expected {scheme}://HOST/...")
    if scheme in SCHEMES:
        return text
    raise BadInput(
        f"{without_password(text)} begins with {scheme}://, which is not read{did_you_mean(scheme, _USUAL)}; expected "
        f"one of {', '.join(SCHEMES)}, or the path of a file"
    )


def _kind_of_path(text: str) -> SourceKind:
    path = Path(text)
    if _holds(path.is_dir):
        return "folder"
    if _WILDCARDS & set(text) and not _holds(path.exists):
        return "pattern"
    suffix = path.suffix.lower()
    if suffix == LIST_SUFFIX:
        return "list"
    return "video" if suffix in VIDEO_SUFFIXES else "picture"


def _holds(check: Callable[[], bool]) -> bool:
    """Whether a check of a path holds; not for a name that no file can have, which is refused where it is opened."""
    try:
        return check()
    except (OSError, ValueError):
        return False
