"""Several questions in flight against one after the other: tokens a second of all together, on one session.

    python benchmarks/batching.py BUNDLE [--variant NAME] [--in-flight 1 2 4 8] [--new-tokens 32] [--rounds 5]

In every round each number of questions is answered one by one and together, in turns; figures are medians over the
rounds. Questions are about one picture that the session knows, or with --pictures about one each that it does not; by
token ids, as plain LLaVA. `decode` counts the steps alone, `whole` everything, prefills included. Memory is that of
this process behind the most questions one by one and behind as many at once, whose first look goes through RPN and
gate, too, beside what `sdrpn plan` counts for them; with --rounds 0 only that is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import cpu_needs
from sdrpn.method.roi import Decide, RoiDecision, RoiPolicy
from sdrpn.runtime import Session
from sdrpn.runtime.decoder import Decoder, FloatArray, NextToken
from sdrpn.runtime.pictures.picture import Picture, open_picture
from sdrpn.runtime.questions import AnswerOptions
from sdrpn.runtime.stream import AnswerStream

BEFORE = tuple(range(3, 38))
PROMPT_TOKENS = 40
FIRST_LOOK = RoiPolicy(gate_threshold=1e-6)  # a gate is asked, and ends nothing


class StepClock:
    """Adds up the seconds and the tokens of decode steps."""

    def __init__(self, decoder: Decoder) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._step = decoder.step
        decoder.step = self._timed  # type: ignore[method-assign]

    def _timed(self, tokens: Sequence[NextToken]) -> list[FloatArray]:
        start = time.perf_counter()
        logits = self._step(tokens)
        self.seconds, self.tokens = self.seconds + time.perf_counter() - start, self.tokens + len(tokens)
        return logits

    def reset(self) -> None:
        self.seconds, self.tokens = 0.0, 0


class Side:
    """Asks a number of questions, one by one or together."""

    def __init__(self, session: Session, new_tokens: int, pictures: bool) -> None:
        self._session, self._new_tokens, self._pictures = session, new_tokens, pictures
        self._clock = StepClock(session._decoder)
        usable = session.spec.llm.vocabulary - 3
        self._after = tuple(3 + index % usable for index in range(50, 50 + PROMPT_TOKENS))
        self._picture = picture_of(0)

    def measured(self, count: int, together: bool, decide: Decide | None = None) -> dict[str, float]:
        """Tokens a second."""
        if self._pictures:
            self._session.forget_image()
        self._clock.reset()
        start = time.perf_counter()
        if together:
            streams = [self._begun(number, decide) for number in range(count)]
            answers = [stream.finish() for stream in streams]
        else:
            answers = [self._begun(number, decide).finish() for number in range(count)]
        whole_s = time.perf_counter() - start
        tokens = sum(len(answer.token_ids) for answer in answers)
        return {"decode": self._clock.tokens / self._clock.seconds, "whole": tokens / whole_s}

    def _begun(self, number: int, decide: Decide | None) -> AnswerStream:
        picture = picture_of(number) if self._pictures else self._picture
        options = AnswerOptions(None if decide is None else FIRST_LOOK, self._new_tokens, decide=decide)
        stream = self._session._questions.stream_of(picture, BEFORE, self._after, options)
        stream._sequence._stop_ids = frozenset()  # answers have their full length
        stream.submit()
        return stream


def picture_of(number: int) -> Picture:
    return open_picture(np.random.default_rng(number).integers(0, 256, (336, 448, 3), dtype=np.uint8))


def no_box(logits: FloatArray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (), None, logits)


def rss_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    most = max(arguments.in_flight)
    rounds: dict[int, dict[str, list[dict[str, float]]]] = {
        n: {"apart": [], "together": []} for n in arguments.in_flight
    }
    with Session.open(
        arguments.bundle, variant=arguments.variant, threads=arguments.threads, max_batch=most, prefix_bytes=0
    ) as session:
        side = Side(session, arguments.new_tokens, arguments.pictures)
        decide = no_box if session.spec.rpn is not None else None
        side.measured(most, together=False, decide=decide)
        one_bytes = rss_bytes()
        side.measured(most, together=True, decide=decide)
        all_bytes, length = rss_bytes(), session._decoder.slots.length
        for number in range(arguments.rounds):
            for count in arguments.in_flight:
                order = ("apart", "together") if number % 2 else ("together", "apart")
                for way in order:
                    rounds[count][way].append(side.measured(count, way == "together"))
                print(f"\rround {number + 1} of {arguments.rounds}, {count} at once  ", end="", file=sys.stderr)
        planned = further_sequence_bytes(session.bundle, session.variant, length)
    print(file=sys.stderr)
    return {
        "cpu": cpu_name(),
        "onnxruntime": onnxruntime.__version__,
        "threads": arguments.threads,
        "in_flight": {count: figures(found) for count, found in rounds.items() if found["apart"]},
        "further_sequence_bytes": {"measured": (all_bytes - one_bytes) // max(1, most - 1), "planned": planned},
    }


def figures(rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians, and the median of the ratios within a round."""
    found: dict[str, float] = {}
    for what in ("decode", "whole"):
        apart, together = ([each[what] for each in rounds[way]] for way in ("apart", "together"))
        ratios = [batched / other for batched, other in zip(together, apart, strict=True)]
        found |= {f"{what}_apart": statistics.median(apart), f"{what}_together": statistics.median(together)}
        found[f"{what}_ratio"] = statistics.median(ratios)
    return found


def further_sequence_bytes(bundle: Bundle, variant: Variant, context: int) -> int:
    """What `sdrpn plan --batch` adds for one more."""
    one, two = (cpu_needs(bundle, variant, context=context, batch=batch).total_bytes for batch in (1, 2))
    return two - one


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def report(results: dict[str, Any]) -> None:
    print(f"{results['cpu']}, {results['threads'] or 'all'} threads, ONNX Runtime {results['onnxruntime']}")
    if results["in_flight"]:
        print("tokens/s       decode: apart  together  ratio     whole: apart  together  ratio")
    for count, each in results["in_flight"].items():
        print(
            f"{count:>2} in flight {each['decode_apart']:14.1f}{each['decode_together']:10.1f}"
            f"{each['decode_ratio']:7.2f}{each['whole_apart']:17.1f}{each['whole_together']:10.1f}{each['whole_ratio']:7.2f}"
        )
    memory = results["further_sequence_bytes"]
    print(f"a further sequence: {memory['measured'] / 1e6:.1f} MB, planned {memory['planned'] / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", action="store_true", help="a picture of its own for every question")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments)
    print(json.dumps(results, indent=1)) if arguments.json else report(results)


if __name__ == "__main__":
    main()
