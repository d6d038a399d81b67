"""How many replicas a load needs: measured times and a trace of requests in, latencies and utilisation out.

    python examples/sizing/simulate.py times.json --rate 2 --pictures 40 --tokens 16 --replicas 1 2 4
    python examples/sizing/simulate.py times.json --trace requests.jsonl --replicas 2 --json

`times.json` is what measure.py writes. A line of a trace has `at_s`, `picture` (any text) and `tokens`; without a trace
requests come at random with a rate per second. A replica is simulated as the scheduler works: one unit of work at a
time, a question that waits is prefilled as soon as a place is free, long prefills are divided by decode steps of the
others, and pictures that were asked about lately are known. Knows no model.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Asked", "Outcome", "Times", "percentile", "random_trace", "replica_of", "simulate"]

Route = Literal["picture", "turns"]
_TINY_S = 1e-9


@dataclass(frozen=True)
class Times:
    """What one replica takes.

    first_s: from the beginning of a prefill to its first token, of a picture that is not known
    known_s: the same for a picture that is known
    step_s: a decode step of 1, 2, ... questions at once; as many entries as a replica answers at once
    beside_s: what a request takes outside of these: HTTP, opening the picture
    pictures: how many a replica knows at once; the least recently used is forgotten first
    stall_s: a prefill is divided so that others wait about so long at most
    one_core: a replica has a single core, so that what is outside delays its work
    together: how many times as long everything takes while all other replicas work, which share the machine's memory
    """

    first_s: float
    known_s: float
    step_s: tuple[float, ...]
    beside_s: float = 0.0
    pictures: int = 1_000_000
    stall_s: float = 0.2
    one_core: bool = False
    together: float = 1.0

    def __post_init__(self) -> None:
        if self.together < 1:
            raise ValueError(f"together has to be at least 1; got {self.together}")
        if not self.step_s or min(self.first_s, self.known_s, self.stall_s, *self.step_s) <= 0 or self.beside_s < 0:
            raise ValueError(f"times have to be above 0; got {self}")

    @property
    def batch(self) -> int:
        """Questions at once."""
        return len(self.step_s)


@dataclass(frozen=True)
class Asked:
    """A request of a trace."""

    at_s: float
    picture: str
    tokens: int  # of its answer


@dataclass
class Outcome:
    """What clients see, in seconds, in the order of the trace; and how busy the replicas are, from 0 to 1."""

    latency_s: list[float]
    first_token_s: list[float]
    known: float  # share of requests whose picture was known
    utilisation: list[float] = field(default_factory=list)
    span_s: float = 0.0  # from the first request to the last answer

    def to_json(self) -> dict[str, object]:
        """Figures alone."""
        return {
            "requests": len(self.latency_s),
            "answers_per_s": len(self.latency_s) / self.span_s if self.span_s else 0.0,
            "latency_s": {f"p{p}": percentile(self.latency_s, p) for p in (50, 95, 99)},
            "first_token_s": {f"p{p}": percentile(self.first_token_s, p) for p in (50, 95, 99)},
            "known": self.known,
            "utilisation": sum(self.utilisation) / len(self.utilisation),
            "busiest": max(self.utilisation),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """By the nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else 0.0


def random_trace(rate: float, seconds: float, pictures: int, tokens: int, seed: int = 0) -> list[Asked]:
    """Requests at random times, each about one of so many pictures, with answers of so many tokens on average."""
    source, at_s, found = random.Random(seed), 0.0, []
    while (at_s := at_s + source.expovariate(rate)) < seconds:
        found.append(Asked(at_s, f"picture {source.randrange(pictures)}", source.randint(1, 2 * tokens - 1)))
    return found


def simulate(trace: Sequence[Asked], times: Times, replicas: int, route: Route = "picture") -> Outcome:
    """Let so many replicas answer a trace.

    Args: route: "picture": all questions about a picture meet one replica; "turns": each goes to the next one
    """
    own: list[list[int]] = [[] for _ in range(replicas)]
    for number, asked in enumerate(trace):
        own[replica_of(asked.picture, replicas) if route == "picture" else number % replicas].append(number)
    working = [_Replica(times, [(trace[number], number) for number in numbers]) for numbers in own]
    _run(working, times.together)
    first, last, busy, known = dict[int, float](), dict[int, float](), [], 0
    for replica in working:
        first |= replica.first_s
        last |= replica.last_s
        known += replica.known
        busy.append(replica.busy_s)
    span_s = max(last.values(), default=0.0) - min((asked.at_s for asked in trace), default=0.0)
    return Outcome(
        [last[number] - asked.at_s for number, asked in enumerate(trace)],
        [first[number] - asked.at_s for number, asked in enumerate(trace)],
        known / len(trace) if trace else 0.0,
        [seconds / span_s if span_s else 0.0 for seconds in busy],
        span_s,
    )


def replica_of(picture: str, replicas: int) -> int:
    """The number of the replica that a picture belongs to."""
    return int(hashlib.sha256(picture.encode()).hexdigest(), 16) % replicas


@dataclass
class _Work:
    left_s: float  # if nobody else worked

    def ended(self, now_s: float) -> bool:
        return self.left_s <= _TINY_S


@dataclass(frozen=True)
class _Until:
    at_s: float

    def ended(self, now_s: float) -> bool:
        return self.at_s <= now_s + _TINY_S


def _run(replicas: Sequence[_Replica], together: float) -> None:
    """Let all replicas do what they have to, each slower the more others work."""
    runs = [replica.run() for replica in replicas]
    doing = [next(run, None) for run in runs]
    now_s, others = 0.0, max(1, len(replicas) - 1)
    while any(work is not None for work in doing):
        busy = sum(isinstance(work, _Work) for work in doing)
        slower = 1 + (together - 1) * (busy - 1) / others
        ends = [work.left_s * slower if isinstance(work, _Work) else work.at_s - now_s for work in doing if work]
        passed_s = max(0.0, min(ends))
        now_s += passed_s
        for number, work in enumerate(doing):
            if isinstance(work, _Work):
                work.left_s -= passed_s / slower
                replicas[number].busy_s += passed_s
            if work is not None and work.ended(now_s):
                replicas[number].now_s = now_s
                doing[number] = next(runs[number], None)


class _Replica:
    """One scheduler: prefills one after the other, decode steps of all that run."""

    def __init__(self, times: Times, requests: list[tuple[Asked, int]]) -> None:
        self._times = times
        self._coming = deque(sorted(requests, key=lambda request: request[0].at_s))
        self._waiting: deque[tuple[Asked, int]] = deque()
        self._running: dict[int, int] = {}  # number -> tokens that are left
        self._pictures: OrderedDict[str, None] = OrderedDict()
        self.now_s = self.busy_s = 0.0
        self.known = 0
        self.first_s: dict[int, float] = {}
        self.last_s: dict[int, float] = {}

    def run(self) -> Iterator[_Work | _Until]:
        """What it does until everything is answered; `now_s` is when each of it is done."""
        while self._coming or self._waiting or self._running:
            yield from self._arrive()
            if self._waiting and len(self._running) < self._times.batch:
                yield from self._prefill(*self._waiting.popleft())
            elif self._running:
                yield from self._step()
            else:
                yield _Until(self._coming[0][0].at_s + self._before_s)

    @property
    def _before_s(self) -> float:
        """From the arrival of a request until it can be worked on, without delaying other work."""
        return 0.0 if self._times.one_core else self._times.beside_s

    def _arrive(self) -> Iterator[_Work]:
        while self._coming and self._coming[0][0].at_s + self._before_s <= self.now_s + _TINY_S:
            self._waiting.append(self._coming.popleft())
            if self._times.one_core:
                yield _Work(self._times.beside_s)

    def _prefill(self, asked: Asked, number: int) -> Iterator[_Work]:
        is_known = self._knows(asked.picture)
        self.known += is_known
        left_s = self._times.known_s if is_known else self._times.first_s
        while left_s > 0:
            part_s = min(left_s, self._times.stall_s) if self._running else left_s
            yield _Work(part_s)
            left_s -= part_s
            if left_s > 0 and self._running:
                yield from self._step()
        self.first_s[number] = self.now_s
        self._running[number] = asked.tokens
        self._token(number)

    def _knows(self, picture: str) -> bool:
        known = picture in self._pictures
        self._pictures[picture] = None
        self._pictures.move_to_end(picture)
        if len(self._pictures) > self._times.pictures:
            self._pictures.popitem(last=False)
        return known

    def _step(self) -> Iterator[_Work]:
        yield _Work(self._times.step_s[len(self._running) - 1])
        for number in list(self._running):
            self._token(number)

    def _token(self, number: int) -> None:
        self._running[number] -= 1
        if self._running[number] <= 0:
            del self._running[number]
            self.last_s[number] = self.now_s


def read_times(path: Path) -> Times:
    """What measure.py wrote."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = {entry.name for entry in dataclasses.fields(Times)}
    given: dict[str, Any] = {name: value[name] for name in known & set(value)}
    return Times(**{**given, "step_s": tuple(given["step_s"])})


def read_trace(path: Path) -> list[Asked]:
    """A line of JSON per request."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Asked(float(v["at_s"]), str(v["picture"]), int(v["tokens"])) for v in map(json.loads, filter(None, lines))]


def _table(found: dict[int, Outcome]) -> Iterator[str]:
    yield "replicas    p50 s    p95 s    p99 s first p95  busy busiest  known"
    for replicas, outcome in found.items():
        p50, p95, p99 = (percentile(outcome.latency_s, p) for p in (50, 95, 99))
        first = percentile(outcome.first_token_s, 95)
        busy = sum(outcome.utilisation) / replicas
        yield (
            f"{replicas:>8} {p50:>8.3f} {p95:>8.3f} {p99:>8.3f} {first:>9.3f} {busy:>5.0%} "
            f"{max(outcome.utilisation):>7.0%} {outcome.known:>6.0%}"
        )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path, help="what measure.py wrote")
    parser.add_argument("--trace", type=Path, help="requests, a line of JSON each")
    parser.add_argument("--rate", type=_positive, default=1.0, help="requests per second (default: 1)")
    parser.add_argument("--seconds", type=_positive, default=600, help="(default: 600)")
    parser.add_argument("--pictures", type=_count, default=20, help="how many different ones (default: 20)")
    parser.add_argument("--tokens", type=_count, default=16, help="length of an answer, on average (default: 16)")
    parser.add_argument("--replicas", type=_count, nargs="+", default=[1, 2, 4])
    parser.add_argument("--route", choices=("picture", "turns"), default="picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # OSError: no such file; the others: not JSON, or without an entry, or with one of another type.
    try:
        times = read_times(options.times)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.times} is not what measure.py writes ({error!r}): make it with measure.py --out")
    if options.trace:
        try:
            trace = read_trace(options.trace)
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"{options.trace} is no trace ({error!r}); expected lines with at_s, picture and tokens")
    else:
        trace = random_trace(options.rate, options.seconds, options.pictures, options.tokens, options.seed)
    found = {count: simulate(trace, times, count, options.route) for count in options.replicas}
    if options.json:
        replicas = {str(count): outcome.to_json() for count, outcome in found.items()}
        print(json.dumps({"format_version": 1, "replicas": replicas}, indent=1))
    else:
        print("\n".join(_table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
