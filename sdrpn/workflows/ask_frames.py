"""One question about every frame of a source, and a file of answers that an interrupted run goes on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from sdrpn.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadInput, RunFailed
from sdrpn.families.look_settings import LookSettings
from sdrpn.frames.feed import FrameFeed, Wanted, any_frame, openers_of
from sdrpn.frames.frame import Frame
from sdrpn.frames.source import STDIN, Given, Source, sources_of
from sdrpn.frames.standard_input import read_standard_input
from sdrpn.frames.thinning import ReadOptions
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.json_files import differing_keys
from sdrpn.host.line_file import LineFile
from sdrpn.runtime import Answer, Session
from sdrpn.workflows.opened_session import opened_session, require_memory, require_tokenizer
from sdrpn.workflows.question import NO_RPN, AskRequest

__all__ = ["AnswerFile", "FrameAnswer", "FramesRequest", "any_frame", "ask_frames"]

Note = Callable[[str], None]
FORMAT_VERSION = 1  # of a line of JSON: what it may have, and what it means
_BUDGET = ("preset", "image_tokens", "resize")
_NOT_ASKED = ("image", "bundle", "question", "check_memory", "verify", "threads", "engine_options", "jpeg")


@dataclass(frozen=True)
class FramesRequest(CheckedFields):
    """A question, and the frames that it is asked about.

    ask: the question, and how it is answered; its `image` is any source that `sdrpn look` takes, or the bytes of the
    picture on standard input. read: which frames. more_sources: looked at in turns with the first.
    """

    checked_elsewhere = ("more_sources",)

    ask: AskRequest
    read: ReadOptions = field(default_factory=ReadOptions)
    more_sources: Sequence[Given] = ()

    @property
    def sources(self) -> list[Source]:
        """All of them. Raises BadInput for one that cannot be, or is named twice."""
        first = STDIN if isinstance(self.ask.image, bytes) else self.ask.image
        return sources_of([first, *self.more_sources])

    def stdin(self) -> bytes:
        """The picture on standard input. Raises BadInput where there is none."""
        return self.ask.image if isinstance(self.ask.image, bytes) else read_standard_input()

    def settings(self) -> dict[str, Any]:
        """What decides the answers, as JSON holds it."""
        ask = self.ask
        chosen = {each.name: getattr(ask, each.name) for each in dataclasses.fields(ask) if each.name not in _NOT_ASKED}
        # Files that were begun before there were such options go on.
        chosen = {name: value for name, value in chosen.items() if value is not None or name not in _BUDGET}
        bundle = open_bundle(bundle_path(ask.bundle))
        settings = {"question": ask.question, "bundle": _digest(bundle), **chosen}
        found: dict[str, Any] = json.loads(json.dumps(settings, default=dataclasses.asdict))
        if ask.sampling.temperature == 0:  # no choice is random: a seed that older files have decides nothing
            found["sampling"]["seed"] = 0
        return found


@dataclass(frozen=True, eq=False)
class FrameAnswer:
    """The answer about one frame. seconds: what it took, once the frame was read."""

    frame: Frame
    answer: Answer
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As one line of JSON."""
        answer = self.answer
        return {
            "format_version": FORMAT_VERSION,
            **self.frame.place(),
            "text": answer.text,
            "token_ids": list(answer.token_ids),
            "finish_reason": answer.finish_reason,
            "boxes_xyxy_px": [list(box) for box in answer.boxes_xyxy_px],
            "note": answer.note,
            "seconds": round(self.seconds, 6),
        }


def ask_frames(
    request: FramesRequest, *, wanted: Wanted = any_frame, note: Note = lambda text: None
) -> Generator[FrameAnswer, None, None]:
    """Ask about every frame, one after the other; of cameras and streams about the newest.

    Args:
        wanted: (source, index) of a frame -> whether it is asked about
        note: called with what does not end the work, such as a picture that was passed over
    Raises: as `ask_question`; BadInput for a source that cannot be read; at the end RunFailed where some pictures could
        not be
    """
    bundle = open_bundle(bundle_path(request.ask.bundle))
    require_tokenizer(bundle)
    settings = request.ask.look_settings(bundle.spec)
    if request.ask.check_memory:
        require_memory(bundle, request.ask)
    openers = openers_of(request.sources, request.read, request.stdin)
    roi = settings.roi
    if roi is not None and bundle.spec.rpn is None:
        note(f"{request.ask.bundle} {NO_RPN}")
        roi = None
    feed = FrameFeed(openers, request.read, wanted=wanted, note=note)
    with opened_session(bundle, request.ask, prefix_bytes=0, note=note) as session, feed:
        if session.backend_note is not None:
            note(session.backend_note)
        for frame in feed:
            yield _answered(session, frame, request.ask, dataclasses.replace(settings, roi=roi))
    if unfinished := (*feed.broken, *feed.given_up):
        raise RunFailed(f"{', '.join(unfinished)} could not be read to the end; what came before is answered")
    if feed.unreadable:
        raise RunFailed(f"{feed.unreadable} of the pictures could not be read; the others are answered")


def _answered(session: Session, frame: Frame, ask: AskRequest, settings: LookSettings) -> FrameAnswer:
    start_s = time.perf_counter()
    answer = session.answer(
        frame.pixels,
        ask.question,
        roi=settings.roi,
        max_new_tokens=ask.max_new_tokens,
        sampling=ask.sampling,
        image_tokens=settings.image_tokens,
        resize=settings.resize,
    )
    return FrameAnswer(frame, answer, time.perf_counter() - start_s)


def _digest(bundle: Bundle) -> str:
    """The manifest has digests of all files."""
    return hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes()).hexdigest()


class AnswerFile:
    """Answers as lines of JSON after a line of settings; a context manager. What is in it is not asked again."""

    def __init__(self, path: Path, request: FramesRequest) -> None:
        """Raises BadInput for a file of something else or of other settings, and where a camera would go on with it."""
        self._path, self._settings = path, request.settings()
        self._lines = LineFile(path, then="run it again", busy="wait for it, or name another file")
        self.skipped = 0  # frames of this run that are answered already
        lines = _whole_lines(path) if path.exists() else []
        self.done = {_place_of(path, number, line) for number, line in enumerate(lines[1:], start=2)}
        if lines:
            self._check(lines[0])
            for source in request.sources:
                if source.is_live or source.kind == "stdin":
                    kind = "picture on standard input" if source.kind == "stdin" else source.kind
                    raise BadInput(f"{path} exists; a {kind} has no place to go on from: name a new file")

    def __enter__(self) -> AnswerFile:
        self._lines.__enter__()
        if self._lines.is_empty:
            self._lines.append({"format_version": FORMAT_VERSION, "settings": self._settings})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def lacks(self, source: str, index: int) -> bool:
        """Whether a frame has no answer yet."""
        lacks = (source, index) not in self.done
        self.skipped += not lacks
        return lacks

    def append(self, found: FrameAnswer) -> None:
        """Write one line. Raises RunFailed where the disk is full; the lines before stay whole."""
        self._lines.append(found.to_dict())

    def _check(self, first: bytes) -> None:
        try:
            settings = json.loads(first)["settings"]
            differing = differing_keys(settings, self._settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{self._path} is not a file of answers; name another one, or remove it") from error
        if differing:
            raise BadInput(
                f"{self._path} has answers with another {differing[0]}; name another file, or ask as it was asked then"
            )


def _whole_lines(path: Path) -> list[bytes]:
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); name another file") from error
    return lines


def _place_of(path: Path, number: int, line: bytes) -> tuple[str, int]:
    try:
        record = json.loads(line)
        return str(record["source"]), int(record["frame"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} line {number} is not an answer about a frame; remove the line, or the file") from error
