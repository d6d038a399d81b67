"""Which frames of a source are looked at: every Nth, and no more than so many a second. Knows no clock."""

from __future__ import annotations

from dataclasses import dataclass

from sdrpn.errors import BadInput

__all__ = ["ReadOptions", "Thinning"]


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read.

    drop: whether a frame that nobody took is replaced by the next one; None: for cameras and streams, where looking
        must not lag behind. With True a video is played at its own speed, as if it were a camera.
    every: take every Nth frame. max_fps: take at most so many frames of a source per second of its own time.
    open_timeout_s, read_timeout_s: how long a camera or a stream may take to open, and until its next frame.
    give_up_s: how long one that broke off is tried again.
    Raises: BadInput for values that cannot be.
    """

    drop: bool | None = None
    every: int = 1
    max_fps: float | None = None
    open_timeout_s: float = 5.0
    # With the second until a broken-off source is opened again, well below five.
    read_timeout_s: float = 3.0
    give_up_s: float = 60.0

    def __post_init__(self) -> None:
        every: object = self.every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise BadInput(
                f"every is {every!r}; expected a whole number of at least 1: 1 takes every frame", options=("every",)
            )
        for name in ("max_fps", "open_timeout_s", "read_timeout_s", "give_up_s"):
            value = getattr(self, name)
            if name == "max_fps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise BadInput(f"{name} is {value!r}; expected a number above 0")
        drop: object = self.drop
        if drop is not None and not isinstance(drop, bool):
            raise BadInput(f"drop is {drop!r}; expected True, False, or None: as the source is", options=("drop",))

    def drops(self, live: bool) -> bool:
        """Whether frames of a source are replaced by newer ones."""
        return live if self.drop is None else self.drop


# Times of frames are rounded to the clock of their file: a frame may be early by this share of a step.
_ROUNDING = 0.05


class Thinning:
    """Says of each frame of one source, in order, whether it is taken."""

    def __init__(self, options: ReadOptions) -> None:
        self._every, self._step_s = options.every, 1 / options.max_fps if options.max_fps else 0.0
        self._count = 0
        self._due_s: float | None = None

    def takes(self, time_s: float | None) -> bool:
        """Args: time_s: the frame's time; without one there is no limit per second."""
        self._count += 1
        if (self._count - 1) % self._every:
            return False
        if time_s is None or not self._step_s:
            return True
        late_s = 0.0 if self._due_s is None else time_s - self._due_s
        # Far too early: the source counts its time from zero again, as the next file of a folder does.
        if -2 * self._step_s < late_s < -_ROUNDING * self._step_s:
            return False
        on_beat = self._due_s is not None and abs(late_s) < self._step_s
        self._due_s = (time_s - late_s if on_beat else time_s) + self._step_s
        return True
