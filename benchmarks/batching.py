"""Several questions in flight against one after the other: tokens a second of all together, on one session.

    python benchmarks/batching.py BUNDLE [--variant NAME] [--in-flight 1 2 4 8] [--new-tokens 32] [--rounds 5]
    python benchmarks/batching.py BUNDLE --logits --in-flight 4

In every round each number of questions is answered one by one and together, in turns; figures are medians over the
rounds. Questions are about one picture that the session knows, or with --pictures about one each that it does not; by
token ids, as plain LLaVA. `decode` counts the steps alone, `whole` everything, prefills included. Memory is that of
this process behind the most questions one by one and behind as many at once, whose first look goes through RPN and
gate, too, beside what `sdrpn plan` counts for them; with --rounds 0 only that is measured. --logits compares every
question's logits alone and among the others, up to the first token that differs, with how near the best two are.
"""

from __future__ import annotations

import argparse
import itertools
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

    def answered(self, numbers: Sequence[int]) -> list[tuple[tuple[int, ...], list[FloatArray]]]:
        """Different questions, together: tokens, and the logits (V,) that each was chosen from."""
        logits: list[list[FloatArray]] = [[] for _ in numbers]
        streams = [
            self._begun(number, None, keep=kept, shift=number) for number, kept in zip(numbers, logits, strict=True)
        ]
        return [(stream.finish().token_ids, kept) for stream, kept in zip(streams, logits, strict=True)]

    def _begun(
        self, number: int, decide: Decide | None, keep: list[FloatArray] | None = None, shift: int = 0
    ) -> AnswerStream:
        picture = picture_of(number) if self._pictures else self._picture
        options = AnswerOptions(None if decide is None else FIRST_LOOK, self._new_tokens, decide=decide)
        after = self._after[shift % PROMPT_TOKENS :] + self._after[: shift % PROMPT_TOKENS]
        stream = self._session._questions.stream_of(picture, BEFORE, after, options)
        if keep is not None:
            keep_logits(stream, keep)
        stream._sequence._stop_ids = frozenset()  # answers have their full length
        stream.submit()
        return stream


def keep_logits(stream: AnswerStream, kept: list[FloatArray]) -> None:
    choose = stream._sequence.choose

    def choosing(logits: FloatArray) -> None:
        kept.append(logits.copy().ravel())
        choose(logits)

    stream._sequence.choose = choosing  # type: ignore[method-assign]


def differences(arguments: argparse.Namespace) -> dict[str, Any]:
    """How far the logits of questions together are from those of each alone, and whether another token is a tie."""
    count = max(arguments.in_flight)
    far: list[float] = []
    margins: list[float] = []
    other: list[tuple[float, float]] = []  # where tokens differ: the margin of the best two, and how far logits are
    with opened(arguments, count) as session:
        side = Side(session, arguments.new_tokens, arguments.pictures)
        for number in range(max(1, arguments.rounds)):
            numbers = range(number * count, (number + 1) * count)
            alone = [side.answered([each])[0] for each in numbers]
            for (ids, own), (ids_together, shared) in zip(alone, side.answered(numbers), strict=True):
                same = sum(
                    1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, ids_together, strict=True))
                )
                until = min(len(own), same + 1)
                far += [float(np.abs(a - b).max()) for a, b in zip(own[:until], shared[:until], strict=True)]
                margins += [margin(logits) for logits in own]
                if same < len(ids):
                    other.append((margin(own[same]), far[-1]))
        batches, backend = session.load.batches, session.backend
    largest = max(far)
    return {
        "backend": backend,
        "steps_by_batch": batches,
        "logits_compared": len(far),
        "largest_difference": largest,
        "questions_that_differ": len(other),
        "of_these_ties": sum(best <= 2 * apart for best, apart in other),
        "tokens_with_best_two_within_0.1": round(sum(value < 0.1 for value in margins) / len(margins), 3),
    }


def margin(logits: FloatArray) -> float:
    """How far the best is above the second."""
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)


def picture_of(number: int) -> Picture:
    return open_picture(np.random.default_rng(number).integers(0, 256, (336, 448, 3), dtype=np.uint8))


def no_box(logits: FloatArray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (), None, logits)


def rss_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def opened(arguments: argparse.Namespace, max_batch: int) -> Session:
    return Session.open(
        arguments.bundle,
        backend=arguments.backend,
        variant=arguments.variant,
        threads=arguments.threads,
        max_batch=max_batch,
        prefix_bytes=0,
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    most = max(arguments.in_flight)
    rounds: dict[int, dict[str, list[dict[str, float]]]] = {
        n: {"apart": [], "together": []} for n in arguments.in_flight
    }
    with opened(arguments, most) as session:
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
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", action="store_true", help="a picture of its own for every question")
    parser.add_argument("--logits", action="store_true", help="compare logits in place of times")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.logits:
        print(json.dumps({"format_version": 1, **differences(arguments)}, indent=1))
        return
    results = measure(arguments)
    print(json.dumps(results, indent=1)) if arguments.json else report(results)


if __name__ == "__main__":
    main()
