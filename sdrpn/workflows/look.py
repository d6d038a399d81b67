"""Where questions point on every frame of pictures, videos and cameras, as they come."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadInput
from sdrpn.families.family import Resize
from sdrpn.families.look_settings import LookSettings
from sdrpn.families.registry import family_of
from sdrpn.frames.feed import FrameFeed, openers_of
from sdrpn.frames.frame import Frame, Pixels
from sdrpn.frames.source import Given, sources_of
from sdrpn.frames.standard_input import read_standard_input
from sdrpn.frames.thinning import ReadOptions
from sdrpn.method.policy import OWN, Roi, looking_policy
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import Look, Session
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.pictures.seen import SeenPicture
from sdrpn.runtime.tracker import Tracker
from sdrpn.workflows.opened_session import SessionRequest, opened_session, require_memory, require_tokenizer

__all__ = ["FrameLook", "Look", "LookRequest", "LookStream", "Looker", "StreamFigures", "look_stream"]

Note = Callable[[str], None]
# Of a frame's line of JSON; entries are only added while it stays.
FORMAT_VERSION = 1
# Percentiles are those of the last so many frames: a stream may have any number.
_MOST_TIMES = 4096
# Frames of so many sources are remembered, to recognise those that did not change.
_MOST_SOURCES = 16


@dataclass(frozen=True)
class LookRequest(SessionRequest):
    """Which frames, which questions, and how. The fields from `backend` on are those of `Session.open`.

    sources: one, or a list of several: a text as `sdrpn look` takes it (a picture, folder, pattern, list, video,
    camera, URL, "-"), a Path, or the number of a camera. roi: how maps become boxes, as in `Session.look`. read: which
    frames are taken, and how long a source may be silent. track: keep boxes steady from frame to frame. stdin: the
    picture on standard input, where a source is "-".
    Raises: BadInput for a value of another kind.
    """

    checked_elsewhere = ("bundle", "sources", "questions", "roi")

    bundle: Path | str
    sources: Given | Sequence[Given]
    questions: Sequence[str]
    roi: Roi = OWN
    read: ReadOptions = field(default_factory=ReadOptions)
    track: bool = False
    stdin: Callable[[], bytes] | None = None
    preset: str | None = None  # this and the rest: see LookSettings
    image_tokens: tuple[int, int] | None = None
    resize: Resize | None = None


@dataclass(frozen=True, eq=False)
class FrameLook:
    """What every question found on one frame.

    looks: one for each question, in order. unchanged: the model would have seen the frame before, whose looks these
    are. seconds: what the frame took, once it was read.
    """

    frame: Frame
    looks: tuple[Look, ...]
    unchanged: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As one line of JSON: no map, and no pixels."""
        return {
            "format_version": FORMAT_VERSION,
            **self.frame.place(),
            "unchanged": self.unchanged,
            "seconds": round(self.seconds, 6),
            "looks": [look.to_dict(with_map=False) for look in self.looks],
        }


@dataclass(frozen=True)
class StreamFigures:
    """How a stream went so far. Percentiles are those of the last 4096 frames, in seconds; None: there was none.

    frames: looked at, unchanged ones included. dropped: replaced by newer ones. unreadable: pictures that were passed
    over. reconnects: how often sources came back. given_up: those that did not. broken: sources that could not be read,
    or not to their end.
    """

    frames: int = 0
    unchanged: int = 0
    dropped: int = 0
    unreadable: int = 0
    reconnects: int = 0
    given_up: tuple[str, ...] = ()
    seconds: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None
    broken: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        """Frames per second, waiting for sources included."""
        return self.frames / self.seconds if self.seconds else 0.0


class Looker(Protocol):
    """What looks: a session."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""

    def open_picture(self, image: Pixels) -> Picture:
        """As `Session.open_picture`."""

    def look_many(self, image: Picture, questions: Sequence[str], *, roi: Roi) -> list[Look]:
        """As `Session.look_many`."""


class _Budgeted:
    """A session whose pictures have the budget that was asked for."""

    def __init__(self, session: Session, settings: LookSettings) -> None:
        self._session, self._settings = session, settings
        self.spec = dataclasses.replace(session.spec, vision=settings.vision_of(session.spec))

    def open_picture(self, image: Pixels) -> Picture:
        """As `Session.open_picture`."""
        return self._session.open_picture(image)

    def look_many(self, image: Picture, questions: Sequence[str], *, roi: Roi) -> list[Look]:
        """As `Session.look_many`."""
        settings = self._settings
        return self._session.look_many(
            image, questions, roi=roi, image_tokens=settings.image_tokens, resize=settings.resize
        )


class LookStream:
    """Looks, frame by frame: an iterator and a context manager. Made by `look_stream`."""

    def __init__(
        self,
        looker: Looker,
        frames: Iterable[Frame],
        questions: Sequence[str],
        *,
        roi: Roi = OWN,
        trackers: Callable[[], Tracker] | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        """Args:
        frames: a feed, or frames from anywhere
        trackers: makes what keeps the boxes of one question on one source steady; None: boxes are those of each frame
        resources: closed with the stream
        """
        self._looker, self._frames, self._questions, self._roi = looker, iter(frames), tuple(questions), roi
        self._steady = None if trackers is None else _Steady(trackers)
        self._feed = frames if isinstance(frames, FrameFeed) else None
        self._resources = resources or ExitStack()
        self._last = _LastSeen(looker.spec)
        self._times: deque[float] = deque(maxlen=_MOST_TIMES)
        self._begun_s: float | None = None
        self._ended_s = 0.0
        self._count = self._unchanged = 0

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._looker.spec

    @property
    def sources(self) -> tuple[str, ...]:
        """What frames name as their source, in the order of the request; empty where frames come from anywhere."""
        return () if self._feed is None else self._feed.sources

    @property
    def figures(self) -> StreamFigures:
        """How it went so far."""
        feed, p50_s, p95_s = self._feed, None, None
        if self._times:
            p50_s, p95_s = (float(value) for value in np.percentile(list(self._times), (50, 95)))
        return StreamFigures(
            self._count,
            self._unchanged,
            dropped=0 if feed is None else feed.dropped,
            unreadable=0 if feed is None else feed.unreadable,
            reconnects=0 if feed is None else feed.reconnects,
            given_up=() if feed is None else feed.given_up,
            seconds=0.0 if self._begun_s is None else self._ended_s - self._begun_s,
            p50_s=p50_s,
            p95_s=p95_s,
            broken=() if feed is None else feed.broken,
        )

    def close(self) -> None:
        """Stop reading and free the model."""
        self._resources.close()

    def __enter__(self) -> LookStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[FrameLook]:
        return self

    def __next__(self) -> FrameLook:
        """Looks at the next frame. Raises BadInput for a source that cannot be read, RunFailed where a graph failed."""
        self._begun_s = time.perf_counter() if self._begun_s is None else self._begun_s
        frame = next(self._frames)
        start_s = time.perf_counter()
        looks, unchanged = self._shown(frame)
        self._ended_s = time.perf_counter()
        self._count += 1
        self._unchanged += unchanged
        self._times.append(self._ended_s - start_s)
        return FrameLook(frame, looks, unchanged, self._times[-1])

    def _look(self, frame: Frame) -> tuple[tuple[Look, ...], bool]:
        picture = self._looker.open_picture(frame.pixels)
        known = self._last.looks_of(frame, picture)
        if known is not None:
            return known, True
        looks = tuple(self._looker.look_many(self._last.seen(picture), self._questions, roi=self._roi))
        self._last.keep(frame, looks)
        return looks, False

    def _shown(self, frame: Frame) -> tuple[tuple[Look, ...], bool]:
        """With steady boxes, where that is asked for: they may change also where the frame does not."""
        looks, unchanged = self._look(frame)
        return looks if self._steady is None else self._steady.update(frame, looks), unchanged


def look_stream(request: LookRequest, *, note: Note = lambda text: None) -> LookStream:
    """Look at every frame of all sources, with one model.

    with look_stream(LookRequest("demo", ["0"], ["where is the red tag ?"])) as stream:
        for found in stream:
            print(found.frame.index, found.looks[0].boxes)

    Args:
        note: called with what does not end the work: a source that broke off and came back, a picture that was passed
            over, engines that are there and are not used
    Raises:
        BadInput: no question, a source that is not there, a bundle without an RPN or tokenizer, or what `Session.open`
            refuses; while it goes on, a source that cannot be read
        RunFailed: memory is short
    """
    if not isinstance(request, LookRequest):
        raise BadInput(f"request is {request!r}; expected a LookRequest")
    _require_questions(request.questions)
    openers = openers_of(sources_of(request.sources), request.read, request.stdin or read_standard_input)
    feed = FrameFeed(openers, request.read, note=note)
    bundle = open_bundle(bundle_path(request.bundle))
    require_tokenizer(bundle)
    if bundle.spec.rpn is None:
        raise BadInput(f"{bundle.path} has no RPN, which finds regions; export a checkpoint that has one")
    if request.check_memory:
        require_memory(bundle, request, "look")
    settings = LookSettings(request.roi, request.preset, request.image_tokens, request.resize).settled(bundle.spec)
    policy = looking_policy(settings.roi, bundle.manifest.own_policy.roi)
    trackers = _trackers(bundle.spec, policy) if request.track else None
    with ExitStack() as resources:
        # No frame needs what was computed of an earlier one.
        session = resources.enter_context(opened_session(bundle, request, prefix_bytes=0, parts="look", note=note))
        if session.backend_note is not None:
            note(session.backend_note)
        resources.enter_context(feed)
        return LookStream(
            _Budgeted(session, settings),
            feed,
            request.questions,
            roi=policy,
            trackers=trackers,
            resources=resources.pop_all(),
        )


def _trackers(spec: ModelSpec, policy: RoiPolicy) -> Callable[[], Tracker]:
    if "min_cells" not in family_of(spec).policy_parts:
        raise BadInput(
            "boxes are tracked where a model has one for each region; this one has a single box: leave it out",
            options=("track",),
        )
    Tracker(spec.vision.grid, policy)  # refuses a policy that cannot be tracked before anything is loaded
    return lambda: Tracker(spec.vision.grid, policy)


class _LastSeen:
    """What the model saw last of every source, so that a frame that shows it the same again costs no look."""

    def __init__(self, spec: ModelSpec) -> None:
        self._square = family_of(spec).square(spec.vision)
        self._known: OrderedDict[str, tuple[npt.NDArray[Any], tuple[Look, ...]]] = OrderedDict()
        self._seen: npt.NDArray[Any] | None = None

    def looks_of(self, frame: Frame, picture: Picture) -> tuple[Look, ...] | None:
        """The looks of the frame before, where this one is the same to the model; else None."""
        self._seen = self._input_of(frame, picture)
        known = self._known.get(frame.source)
        if known is None or known[1][0].image_wh != frame.size_wh or not np.array_equal(known[0], self._seen):
            return None
        return known[1]

    def seen(self, picture: Picture) -> Picture:
        """The picture that `looks_of` was called with, which is not resized once more."""
        assert self._seen is not None  # looks_of was called
        return picture if self._square is None else SeenPicture(picture, self._square, self._seen)

    def keep(self, frame: Frame, looks: tuple[Look, ...]) -> None:
        """Called after `looks_of` with the same frame."""
        assert self._seen is not None  # looks_of was called
        self._known[frame.source] = self._seen, looks
        self._known.move_to_end(frame.source)
        if len(self._known) > _MOST_SOURCES:
            self._known.popitem(last=False)

    def _input_of(self, frame: Frame, picture: Picture) -> npt.NDArray[Any]:
        """What the vision tower reads; of a model that does not see squares, the frame itself."""
        if self._square is None:
            return frame.pixels
        side = self._square.image_size_px
        seen = np.empty((1, 3, side, side), np.float32)
        picture.write_base(self._square, seen)
        return seen


class _Steady:
    """A tracker for every question on every source."""

    def __init__(self, trackers: Callable[[], Tracker]) -> None:
        self._make = trackers
        self._known: OrderedDict[str, tuple[Tracker, ...]] = OrderedDict()

    def update(self, frame: Frame, looks: Sequence[Look]) -> tuple[Look, ...]:
        """The looks with steady boxes."""
        own = self._known.pop(frame.source, None) or tuple(self._make() for _ in looks)
        self._known[frame.source] = own
        if len(self._known) > _MOST_SOURCES:
            self._known.popitem(last=False)
        return tuple(tracker.update(look, frame.pixels) for tracker, look in zip(own, looks, strict=True))


def _require_questions(questions: Sequence[str]) -> None:
    if isinstance(questions, str) or not isinstance(questions, Sequence) or not questions:
        raise BadInput(f"questions are {questions!r}; expected a list of at least one question")
    for question in questions:
        if not isinstance(question, str):
            raise BadInput(f"a question is {question!r}; expected a text")
    if len(set(questions)) != len(questions):
        raise BadInput("a question is asked twice; expected each once")
