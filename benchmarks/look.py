"""What a look costs, on one thread: on a new frame, another question on it, four questions at once; against answers.

    python benchmarks/look.py BUNDLE [--variant NAME] [--rounds 20] [--frame 1280x720] [--memory]

Every round takes each side in turn. Milliseconds are medians and 95th percentiles. Ratios are medians over the rounds
of what was measured beside each other, in processor time: one thread does all the work, so that other programs on the
machine do not count. `answer` and `plain` are the times to their first token, with a second look where the map asks
for one, and without an RPN. `stages` is the time of a look over the sum of its stages. --memory: the peak of a process
that opens the bundle and looks once, with parts="look" and whole.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from peak_memory import peak_rss_bytes

from sdrpn.runtime import Look, Session

Frame = npt.NDArray[np.uint8]
QUESTIONS = (
    "what is the code on the red tag ?",
    "what is the code on the blue tag ?",
    "i see a yellow tag . what is its code ?",
    "what is the code on the green tag ?",
)


class Frames:
    """Frames that were never seen before."""

    def __init__(self, width: int, height: int) -> None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        self._frame = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()
        self._count = 0

    def new(self) -> Frame:
        self._count += 1
        frame = self._frame.copy()
        frame[:16, :16] = self._count % 251, self._count // 251 % 251, 7
        return frame


@dataclass(frozen=True)
class Took:
    """Seconds on the wall clock, and of the processor."""

    wall_s: float
    cpu_s: float


@contextmanager
def clock() -> Iterator[list[Took]]:
    """Receives one entry when the block ends."""
    found: list[Took] = []
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield found
    found.append(Took(time.perf_counter() - wall_s, time.process_time() - cpu_s))


class Sides:
    """Each way to ask, as a function that asks once and says how long it took."""

    def __init__(self, session: Session, frames: Frames) -> None:
        self._session, self._frames, self._asked = session, frames, 0
        self._frame = frames.new()
        self.looks: list[Look] = []
        self.all: dict[str, Callable[[], Took]] = {
            "look": self.look,
            "same frame": self.same_frame,
            "look_many of 4": self.look_many,
            "answer": lambda: self.first_token({}),
            "plain": lambda: self.first_token({"roi": None}),
        }

    def look(self) -> Took:
        self._frame = self._frames.new()
        with clock() as took:
            self.looks.append(self._session.look(self._frame, QUESTIONS[0]))
        return took[0]

    def same_frame(self) -> Took:
        """Behind `look`, on its frame."""
        self._asked += 1
        question = QUESTIONS[1 + self._asked % 3]
        with clock() as took:
            self._session.look(self._frame, question)
        return took[0]

    def look_many(self) -> Took:
        frame = self._frames.new()
        with clock() as took:
            self._session.look_many(frame, QUESTIONS)
        return took[0]

    def first_token(self, options: dict[str, Any]) -> Took:
        frame = self._frames.new()
        with clock() as took:
            stream = self._session.stream(frame, QUESTIONS[0], max_new_tokens=1, **options)
        stream.close()
        return took[0]


def measured(session: Session, frames: Frames, rounds: int) -> dict[str, Any]:
    """Milliseconds and ratios by side."""
    sides = Sides(session, frames)
    for ask in sides.all.values():  # buffers are made once
        ask()
    sides.looks.clear()
    found: dict[str, list[Took]] = {name: [] for name in sides.all}
    for _ in range(rounds):
        for name, ask in sides.all.items():
            found[name].append(ask())
    return {
        "milliseconds": {name: _spread(values) for name, values in found.items()},
        "relative_to_look": {name: _ratio(values, found["look"]) for name, values in found.items() if name != "look"},
        "look_relative_to_plain": _ratio(found["look"], found["plain"]),
        "stages": round(statistics.median(look.timings.total_s / look.timings.stages_s for look in sides.looks), 3),
        "look_stages_ms": {
            name: round(1000 * statistics.median(getattr(look.timings, f"{name}_s") for look in sides.looks), 2)
            for name in ("preprocess", "vision", "trunk", "rpn", "roi_decode")
        },
    }


def _spread(values: list[Took]) -> dict[str, float]:
    wall = [1000 * took.wall_s for took in values]
    return {
        "p50": round(statistics.median(wall), 2),
        "p95": round(float(np.quantile(wall, 0.95)), 2),
        "p50_of_processor": round(1000 * statistics.median(took.cpu_s for took in values), 2),
    }


def _ratio(values: list[Took], others: list[Took]) -> float:
    return round(statistics.median(took.cpu_s / other.cpu_s for took, other in zip(values, others, strict=True)), 3)


def peak_bytes(bundle: str, variant: str | None, parts: str, width: int, height: int) -> int:
    """The most memory that a process took which opened the bundle and looked once."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_look_once, (bundle, variant, parts, width, height))


def _look_once(bundle: str, variant: str | None, parts: Any, width: int, height: int) -> int:
    with Session.open(bundle, variant=variant, threads=1, parts=parts) as session:
        session.look(Frames(width, height).new(), QUESTIONS[0])
    return peak_rss_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or demo")
    parser.add_argument("--variant")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--frame", default="1280x720", metavar="WxH")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    width, height = map(int, args.frame.split("x"))
    bundle = args.bundle if not Path(args.bundle).exists() else str(Path(args.bundle))
    result: dict[str, Any] = {"cpu": _cpu(), "onnxruntime": onnxruntime.__version__, "frame": args.frame}
    with Session.open(bundle, variant=args.variant, threads=1) as session:
        result |= {"variant": session.variant.name, **measured(session, Frames(width, height), args.rounds)}
    if args.memory:
        result["peak_bytes"] = {
            parts: peak_bytes(bundle, args.variant, parts, width, height) for parts in ("look", "all")
        }
    print(json.dumps(result, indent=1))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
