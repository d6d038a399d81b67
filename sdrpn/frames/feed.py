"""Frames of several sources for one taker: the newest of each, in fair turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

from sdrpn.errors import BadImage, BadInput, MissingDependency, SdrpnError
from sdrpn.frames.files import FileSequence, OnePicture, files_of
from sdrpn.frames.frame import Frame
from sdrpn.frames.live_places import camera_place, stream_place
from sdrpn.frames.raw import Opener, OpenSource
from sdrpn.frames.reader import Arrived, Clock, Reader
from sdrpn.frames.source import Source
from sdrpn.frames.thinning import ReadOptions
from sdrpn.frames.video import Video, open_video_file

__all__ = ["FrameFeed", "NamedOpener", "Wanted", "any_frame", "opener_of", "openers_of"]

_LONGEST_END_S = 0.5  # how long the end waits for a thread; one that hangs in a library is left behind
_LOOK_UP_S = 0.25  # how often sources that give nothing are checked
Note = Callable[[str], None]
Wanted = Callable[[str, int], bool]  # (source, index) of a frame -> whether it is to be looked at


@dataclass(frozen=True)
class NamedOpener:
    """How one source is opened. `live`: whether it is a camera or a stream. `files`: what it consists of, if files."""

    name: str
    opener: Opener
    live: bool = False
    has_time: bool = True  # False: pictures, which are never dropped
    files: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What its frames name as their source."""
        return self.files or (self.name,)


def opener_of(source: Source, options: ReadOptions, stdin: Callable[[], bytes]) -> NamedOpener:
    """How a source of any kind is opened.

    Args:
        stdin: reads the picture on standard input
    Raises: BadInput for what can be known before: a folder without pictures, a pattern without a match, no camera
    """
    if source.kind == "camera":
        place = camera_place(source, options)
        return NamedOpener(place.name, partial(Video.open, place), live=True)
    if source.kind == "stream":
        return NamedOpener(source.name, partial(Video.open, stream_place(source, options)), live=True)
    if source.kind == "video":
        return NamedOpener(source.name, partial(open_video_file, Path(source.place)))
    if source.kind == "picture":
        return NamedOpener(source.name, lambda: OnePicture(Path(source.place)), has_time=False)
    if source.kind == "stdin":
        picture = stdin()
        return NamedOpener("standard input", lambda: OnePicture(picture), has_time=False)
    paths = files_of(source)
    files = tuple(str(path) for path in paths)
    return NamedOpener(source.name, lambda: FileSequence(paths, open_video_file), has_time=False, files=files)


def openers_of(sources: Sequence[Source], options: ReadOptions, stdin: Callable[[], bytes]) -> list[NamedOpener]:
    """How every source is opened; one that cannot be, beside others that can, fails when it is its turn.

    Raises: as `opener_of`, where none can be opened
    """
    errors: list[BadInput] = []

    def opener(source: Source) -> NamedOpener:
        try:
            return opener_of(source, options, stdin)
        except BadInput as error:
            errors.append(error)
            return NamedOpener(source.name, partial(_refuse, error))

    found = [opener(source) for source in sources]
    if errors and len(errors) == len(sources):
        raise errors[0]
    return found


def _refuse(error: BadInput) -> OpenSource:
    raise error


def any_frame(source: str, index: int) -> bool:
    """Every frame is wanted."""
    return True


class FrameFeed:
    """Every frame that is to be looked at; a context manager and an iterator.

    Of several sources with a frame at hand the one is served whose turn is longest ago, with its newest frame where
    frames are dropped, else with its next. What cannot be read is passed over with a note where there is something
    else: a picture, a source beside others, the rest of a file that is cut off. An error is raised where no source gave
    a frame.
    """

    def __init__(
        self,
        openers: Sequence[NamedOpener],
        options: ReadOptions | None = None,
        *,
        wanted: Wanted = any_frame,
        note: Note = lambda text: None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Args:
        wanted: asked before a frame is decoded or converted
        note: called on the taker's thread with what does not end the work, such as a source that broke off
        Raises: BadInput without a source
        """
        if not openers:
            raise BadInput("no source is given; expected at least one picture, folder, video, camera or URL")
        options, self._note = options or ReadOptions(), note
        self._wanted = wanted
        self._changed = threading.Condition()
        self._readers = [
            Reader(
                named.name,
                named.opener,
                self._changed,
                options if named.has_time else replace(options, drop=False),
                live=named.live,
                clock=clock,
            )
            for named in openers
        ]
        self.sources = tuple(name for named in openers for name in named.names)  # what frames name, in their order
        self._served = dict.fromkeys(self._readers, 0)  # when each had its last turn
        self._turn = 0
        self.unreadable = 0  # pictures that were passed over
        self.broken: tuple[str, ...] = ()  # sources that could not be read, or not to their end
        self._given = self._seen = 0
        self._problem: SdrpnError | None = None

    @property
    def dropped(self) -> int:
        """Frames of all sources that were replaced by newer ones."""
        return sum(reader.dropped for reader in self._readers)

    @property
    def reconnects(self) -> int:
        """How often sources came back."""
        return sum(reader.reconnects for reader in self._readers)

    @property
    def given_up(self) -> tuple[str, ...]:
        """Sources that broke off and did not come back."""
        return tuple(reader.name for reader in self._readers if reader.gave_up)

    def __enter__(self) -> FrameFeed:
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.stop()
        for reader in self._readers:  # a thread that decodes while the interpreter ends may crash it
            reader.join(_LONGEST_END_S)

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        """The next frame; waits for one. Raises BadInput where no source gave one, or a library is missing."""
        while True:
            taken = self._next_arrived()
            self._pass_notes_on()
            if taken is None:
                break
            frame = self._converted(*taken)
            if frame is not None:
                self._given += 1
                return frame
        if self._problem is not None and not self._given and not self._seen:
            raise self._problem
        raise StopIteration

    def _next_arrived(self) -> tuple[Reader, Arrived, int] | None:
        """Who read it, a frame, and how many it dropped before; None: all sources are over."""
        with self._changed:
            while True:
                for reader in self._readers:
                    reader.check()
                    if reader.error is not None and not reader.box:
                        self._pass_over(reader, reader.error)
                ready = [reader for reader in self._readers if reader.box]
                if ready:
                    return self._served_next(ready)
                if all(reader.over for reader in self._readers):
                    return None
                self._changed.wait(_LOOK_UP_S)
                if any(reader.notes for reader in self._readers):
                    self._pass_notes_on()

    def _pass_over(self, reader: Reader, error: SdrpnError) -> None:
        """A source failed, whose frames before are taken."""
        reader.error = None
        if isinstance(error, MissingDependency):
            raise error
        self._problem = self._problem or error
        self.broken += (reader.name,)
        if reader.begun:
            reader.notes.append(str(error))
        elif len(self._readers) > 1:
            reader.notes.append(f"passed over: {error}")

    def _served_next(self, ready: Sequence[Reader]) -> tuple[Reader, Arrived, int]:
        reader = min(ready, key=self._served.__getitem__)
        self._turn += 1
        self._served[reader] = self._turn
        arrived = reader.box.take()
        assert arrived is not None  # it is ready
        return reader, arrived, reader.dropped

    def _pass_notes_on(self) -> None:
        for reader in self._readers:
            while reader.notes:
                self._note(reader.notes.pop(0))

    def _converted(self, reader: Reader, arrived: Arrived, dropped: int) -> Frame | None:
        """With its pixels; None for a picture that cannot be read, beside others."""
        raw = arrived.raw
        self._seen += 1
        name, index = raw.name or reader.name, arrived.index if raw.index is None else raw.index
        if not self._wanted(name, index):
            return None
        try:
            pixels = raw.pixels()
        except BadImage as error:
            self._seen -= 1
            self._problem = self._problem or error
            self.unreadable += 1
            if self._given or len(self._readers) > 1 or raw.name is not None:
                self._note(f"passed over: {error}")
            return None
        return Frame(pixels, name, index, arrived.time_s, dropped)
