"""Would questions that wait gain by being prefilled together? Their rows as one batch against one after the other.

    python benchmarks/prefill_batches.py BUNDLE [--variant NAME] [--rows 10 20 40 80] [--batch 4] [--rounds 7]

The graphs trunk and tail over the rows of as many questions as --batch, behind the prefix of a picture that is in the
caches already, as ONNX Runtime runs them; both ways in turns in every round. Figures are processor seconds, which a
busy machine changes less than the wall clock, and medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from sdrpn.runtime import Session
from sdrpn.runtime.backends.row_feeds import row_buffers
from sdrpn.runtime.backends.runner import Array, Buffer, in_order
from sdrpn.runtime.decoder import Decoder

PREFIX_ROWS_MORE = 35  # tokens in front of the image


class Prefills:
    """Trunk and tail over S rows of some of the slots, side by side."""

    def __init__(self, session: Session, batch: int) -> None:
        self._decoder: Decoder = session._decoder
        self._backend = session._library
        self._spec = session.spec
        self.start = PREFIX_ROWS_MORE + self._spec.vision.image_tokens
        while len(self._decoder.slots.all) < batch:
            self._decoder.slots.add()

    def bound(self, first: int, count: int, rows: int) -> Callable[[], None]:
        """A run of slots first..first+count-1."""
        llm = self._spec.llm
        hidden = self._backend.allocate((count, rows, llm.width), "float32")
        hidden.write(np.random.default_rng(0).standard_normal(hidden.shape).astype(np.float32))
        tap = self._backend.allocate((count, rows, llm.width), "float32")
        logits = self._backend.allocate((count, llm.vocabulary), "float32")
        feeds = {name: np.repeat(array, count, axis=0) for name, array in self._feeds(rows).items()}
        steps = [
            self._bind("trunk", first, count, rows, feeds, {"inputs_embeds": hidden}, {"tap": tap}),
            self._bind("tail", first, count, rows, feeds, {"tap": tap}, {"logits": logits}),
        ]
        return in_order(steps)

    def make_room(self, rows: int) -> None:
        """For the longest run, in every slot."""
        slots = self._decoder.slots
        slots.reset(slots.all[0], self.start + rows)

    def _feeds(self, rows: int) -> dict[str, Array]:
        return self._decoder._rows.arrays(self.start, self.start + rows)

    def _bind(
        self,
        name: str,
        first: int,
        count: int,
        rows: int,
        feeds: Mapping[str, Array],
        given: dict[str, Buffer],
        results: dict[str, Buffer],
    ) -> Callable[[], None]:
        runner, caches = self._decoder._runners[name], self._decoder.slots.caches_of(name, first, first + count)
        given |= row_buffers(self._backend, runner.inputs, feeds)
        outputs = caches.new_row_buffers(self._backend, rows) or caches.as_outputs()
        return runner.bind(given | caches.buffers, results | outputs)


def processor_s(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(prefills: Prefills, rows: int, batch: int, rounds: int) -> tuple[float, float, float]:
    """Processor seconds one after the other, together, and the median ratio."""
    each = [prefills.bound(slot, 1, rows) for slot in range(batch)]
    ways = {"apart": in_order(each), "together": prefills.bound(0, batch, rows)}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            seconds = processor_s(ways[way])
            if number:
                found[way].append(seconds)
    ratio = statistics.median(a / b for a, b in zip(found["apart"], found["together"], strict=True))
    return statistics.median(found["apart"]), statistics.median(found["together"]), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 10, 20, 40, 80])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with Session.open(arguments.bundle, variant=arguments.variant, threads=arguments.threads) as session:
        prefills = Prefills(session, arguments.batch)
        prefills.make_room(max(arguments.rows))
        print(f"rows of {arguments.batch} questions: apart, together (processor ms), ratio")
        for rows in arguments.rows:
            apart, together, ratio = measured(prefills, rows, arguments.batch, arguments.rounds)
            print(f"{rows:>5} {apart * 1e3:10.1f} {together * 1e3:10.1f} {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
