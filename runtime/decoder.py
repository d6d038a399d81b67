"""The decoder graphs: prefill rows of one sequence; decode steps of one or several sequences.

Works on hidden states, rows and positions, in the slots of `slots.py`, and keeps no state of a question itself. Knows
nothing about images, prompts, crops or the meaning of tokens; `row_feeds.py` makes the graphs' row inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.errors import RunFailed
from sdrpn.method.rope import RotaryFrequencies
from sdrpn.runtime.backends.kv_cache import CacheSet
from sdrpn.runtime.backends.row_feeds import STEP_INPUTS, RowFeeds, row_buffers, step_buffers
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner
from sdrpn.runtime.pacing import Pace
from sdrpn.runtime.slots import Slot, Slots

__all__ = ["Decoder", "ImageRows", "NextToken", "Rows", "RpnOutputs", "row_count"]

FloatArray = npt.NDArray[np.float32]
_LOGITS = "logits of the next token"
# Ranges of slots whose step stays bound: on a GPU each has contexts and a captured graph. Four slots have ten ranges.
_MOST_STEPS = 16


@dataclass(frozen=True)
class ImageRows:
    """Image tokens on the backend's device, (1,rows,D), and the features of the same shape for the first layers."""

    embeds: Buffer
    deepstack: tuple[Buffer, ...] = ()

    def rows(self, start: int, stop: int) -> ImageRows:
        """A part of them, without a copy."""
        return ImageRows(self.embeds.rows(start, stop), tuple(feature.rows(start, stop) for feature in self.deepstack))


Rows = FloatArray | ImageRows  # text (rows,D) in host memory, or image tokens


@dataclass(frozen=True, eq=False)
class RpnOutputs:
    """What the RPN says of a row's question, against every row up to it: H heads, S rows.

    scores: (H,S)
    sink_logits: (S,) how much row 0 looks at each, before the sigmoid, mean over heads; None: the RPN does not say it
    seen_logits: (S,) the most that any of the rows asked for looks at each; None: not asked
    """

    scores: FloatArray
    sink_logits: FloatArray | None = None
    seen_logits: FloatArray | None = None


@dataclass(frozen=True)
class NextToken:
    """The input of a decode step for one sequence."""

    slot: Slot
    embedding: FloatArray  # (1,D)
    row: int  # cache row, after the valid ones of its slot
    position: int  # for the rotary embedding


class Decoder:
    """Trunk, gate, RPN and tail. Writing rows at `start` of a slot drops all rows after them."""

    def __init__(
        self,
        backend: Backend,
        runners: Mapping[str, Runner],
        width: int,
        vocabulary: int,
        rotary: RotaryFrequencies,
        contexts: Sequence[int] = (),
        axis_of: npt.NDArray[np.int64] | None = None,
        slots: int = 1,
    ) -> None:
        """Args:
        rotary: rotary frequencies
        axis_of: (d/2,): the position axis of each pair of channels; None: there is one axis
        contexts: cache lengths that the engines have profiles for, if there are several
        slots: so many are there from the beginning
        """
        self._backend = backend
        self._runners = dict(runners)
        self._width, self._vocabulary = width, vocabulary
        self._rows = RowFeeds(rotary, runners["trunk"].inputs["rope_cos"], axis_of)
        self._logits = backend.allocate((1, vocabulary), "float32", for_host=True)
        self._deepstack = deepstack_inputs(runners["trunk"])
        self._no_features = backend.allocate((1, 0, width), "float32")  # zeros, as many rows as were needed so far
        self._steps: dict[tuple[int, int], _TokenStep] = {}
        self.slots = Slots(backend, runners, width, contexts, self._steps.clear, slots)
        self.computed_rows = dict.fromkeys(runners, 0)  # prefilled since the decoder was created
        self.pace = Pace()

    def run_trunk(self, slot: Slot, embeds: FloatArray | Sequence[Rows], start: int) -> None:
        """embeds (S,D) at rows start..start+S-1 -> their taps and caches.

        Args:
            embeds: all rows, or pieces of them in order: text in host memory, image tokens on the backend's device
        """
        pieces = (embeds,) if isinstance(embeds, np.ndarray) else embeds
        rows = sum(row_count(piece) for piece in pieces)
        stop = start + rows
        if stop > self.slots.length:
            raise RunFailed(f"{rows} rows at {start} are past the cache of {self.slots.length} rows; reserve more")
        hidden = self._joined(pieces, rows)
        features = self._joined_features(pieces, rows)
        for first, end in self._parts("trunk", start, stop):
            feeds = {"inputs_embeds": hidden} | features
            feeds = {name: buffer.rows(first - start, end - start) for name, buffer in feeds.items()}
            self._run("trunk", slot, feeds, {"tap": self.slots.taps_of(slot, first, end)}, first, end)
        slot.tap_rows = stop

    def _joined(self, pieces: Sequence[Rows], rows: int) -> Buffer:
        """(1,rows,D), without copying device data through the host."""
        if len(pieces) == 1:
            return self._buffer(pieces[0])
        hidden = self._backend.allocate((1, rows, self._width), "float32")
        for piece, place in _placed(pieces):
            hidden.copy_rows(self._buffer(piece), row_count(piece), place)
        return hidden

    def _joined_features(self, pieces: Sequence[Rows], rows: int) -> dict[str, Buffer]:
        """What the first layers add to these rows, (1,rows,D) by input: 0 for text."""
        images = [(piece, place) for piece, place in _placed(pieces) if isinstance(piece, ImageRows)]
        found: dict[str, Buffer] = {}
        for number, name in enumerate(self._deepstack):
            if len(pieces) == len(images) == 1:
                found[name] = images[0][0].deepstack[number]
            elif not images:
                found[name] = self._zeros(rows)
            else:
                found[name] = self._backend.allocate((1, rows, self._width), "float32")
                for piece, place in images:
                    found[name].copy_rows(piece.deepstack[number], row_count(piece), place)
        return found

    def _zeros(self, rows: int) -> Buffer:
        """(1,rows,D), which nobody writes to."""
        if self._no_features.shape[1] < rows:
            self._no_features = self._backend.allocate((1, rows, self._width), "float32")
        return self._no_features.rows(0, rows)

    def _buffer(self, piece: Rows) -> Buffer:
        if isinstance(piece, ImageRows):
            return piece.embeds
        buffer = self._backend.allocate((1, *piece.shape), "float32", for_host=True)
        buffer.write(piece[None])
        return buffer

    def run_gate(self, slot: Slot, stop: int) -> float:
        """The logit of row stop-1, computed over the taps that the gate has not processed."""
        logit = self._backend.allocate((1, 1), "float32", for_host=True)
        for first, end in self._parts("gate", min(slot.valid["gate"], stop - 1), stop):
            self._run("gate", slot, {"tap": self._taps_of(slot, first, end)}, {"gate_logit": logit}, first, end)
        found = logit.read()
        self.require_finite(slot, "logit of the gate", found)
        return float(found[0, 0])

    def run_probe(self, slot: Slot, stop: int, statistics: FloatArray) -> float:
        """The logit of row stop-1 by a gate that has no layers. statistics: (n,) of the map."""
        logit = self._backend.allocate((1, 1), "float32", for_host=True)
        known = self._backend.allocate((1, len(statistics)), "float32", for_host=True)
        known.write(statistics[None])
        slot.valid["gate"] = stop - 1  # it needs no rows before
        feeds = {"tap": self._taps_of(slot, stop - 1, stop), "map_statistics": known}
        self._run("gate", slot, feeds, {"gate_logit": logit}, stop - 1, stop)
        found = logit.read()
        self.require_finite(slot, "logit of the gate", found)
        return float(found[0, 0])

    def run_rpn(self, slot: Slot, stop: int, seen_from: int | None = None) -> RpnOutputs:
        """What row stop-1 asks for, computed over the taps that the RPN has not processed.

        Args: seen_from: which rows `seen_logits` is about, this one and those after it; None: it is not asked for
        """
        start = min(slot.valid["rpn"], stop - 1, stop if seen_from is None else seen_from)
        parts = self._parts("rpn", start, stop)
        if seen_from is not None and start < seen_from:  # in runs of their own, which give the most of all their rows
            parts = itertools.chain(self._parts("rpn", start, seen_from), self._parts("rpn", seen_from, stop))
        seen: FloatArray | None = None
        for first, end in parts:
            results = self._rpn_buffers(end - first)
            feeds = {"tap": self._taps_of(slot, first, end)} | self._first_query(slot)
            self._run("rpn", slot, feeds, results, first, end)
            if "first_query_out" in results:
                slot.first_query = np.array(results["first_query_out"].read())
            if seen_from is not None and first >= seen_from:
                rows = _all_rows(results, "seen", first, end)[0]
                seen = rows if seen is None else np.maximum(seen, rows[: len(seen)])
        scores = _all_rows(results, "scores", first, stop)[0]
        sinks = _all_rows(results, "sink_logits", first, stop)[0] if "sink_logits" in results else None
        for found in (scores, sinks, seen):
            if found is not None:
                self.require_finite(slot, "scores of the RPN", found)
        return RpnOutputs(scores, sinks, seen)

    def _first_query(self, slot: Slot) -> dict[str, Buffer]:
        """The query of the sequence's row 0, as the run over it left it; none where the RPN does not take it."""
        tensor = self._runners["rpn"].inputs.get("first_query")
        if tensor is None:
            return {}
        buffer = self._backend.allocate(_shape(tensor, {"batch": 1}), "float32", for_host=True)
        if slot.first_query is not None:
            buffer.write(slot.first_query)
        return {"first_query": buffer}

    def run_tail(self, slot: Slot, start: int, stop: int) -> FloatArray:
        """Logits (V,) of row stop-1, over taps start..stop-1. A view: the next run overwrites it."""
        for first, end in self._parts("tail", start, stop):
            self._run("tail", slot, {"tap": self._taps_of(slot, first, end)}, {"logits": self._logits}, first, end)
        logits: FloatArray = self._logits.read()[0]
        self.require_finite(slot, _LOGITS, logits)
        return logits

    def _parts(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split rows start..stop-1 into parts of about equal length, within the limits of backend and pace.

        A decode step of others may run before each part.
        """
        while True:
            rows = stop - start
            most = min(self.pace.part(name, rows), self._backend.prefill_rows or rows)
            end = start + (rows if most >= rows else rows // -(-rows // most))
            self.slots.fit(name, end if end < stop else self.slots.length)
            yield start, end
            if end == stop:
                return
            start = end

    def step(self, tokens: Sequence[NextToken]) -> list[FloatArray]:
        """One new token of every sequence -> logits (V,) of each: views, which the next step overwrites.

        Adjacent slots are computed as one batch. Results are not checked: see `require_finite`.
        """
        for token in tokens:
            self._require_room(token.slot, token.row)
        logits: dict[int, FloatArray] = {}
        for together in _side_by_side(tokens):
            found = self._step_of(together)(together)
            logits |= {token.slot.index: row for token, row in zip(together, found, strict=True)}
        for token in tokens:  # all or none, so that a failed step can be repeated
            token.slot.valid["trunk"] = token.slot.valid["tail"] = token.row + 1
        return [logits[token.slot.index] for token in tokens]

    def step_one(self, slot: Slot, embedding: FloatArray, row: int) -> FloatArray:
        """The same for one sequence whose positions are its rows, with a check that logits are finite."""
        (logits,) = self.step([NextToken(slot, embedding, row, row)])
        self.require_finite(slot, _LOGITS, logits)
        return logits

    def require_finite(self, slot: Slot, what: str, results: FloatArray) -> None:
        """Raise RunFailed if a result is not finite, and drop the rows of the sequence."""
        if math.isfinite(results.max()):  # NaN if there is one
            return
        self.slots.wipe(slot)
        raise RunFailed(
            f"the {what} are NaN or infinite; expected finite numbers. A half-precision graph overflowed or a file is "
            "damaged: compare the bundle with its checkpoint, or export it in fp32"
        )

    def close(self) -> None:
        """Free runners and buffers."""
        for runner in self._runners.values():
            runner.close()
        self.slots.close()

    def _require_room(self, slot: Slot, row: int) -> None:
        """Make room for one more row, if needed by switching to engines for a longer context, which keep the rows."""
        slots = self.slots
        slot.require_rows("trunk", row)
        slot.require_rows("tail", row)
        if row < slots.length:
            return
        if row >= (slots.max_rows or 0):
            raise RunFailed(f"row {row} is past the cache of {slots.length} rows; reserve more")
        slots.reserve(slot, row + 1)

    def _step_of(self, tokens: Sequence[NextToken]) -> _TokenStep:
        """The step for these slots, bound once until the caches move."""
        start, stop = tokens[0].slot.index, tokens[-1].slot.index + 1
        found = self._steps.pop((start, stop), None)
        if found is None:
            self.slots.make_whole()
            if len(self._steps) >= _MOST_STEPS:
                del self._steps[next(iter(self._steps))]  # the one that was used least recently
            caches = {name: self.slots.caches_of(name, start, stop) for name in ("trunk", "tail")}
            logits = self._logits
            if (start, stop) != (0, 1):  # a step may consist of several runs
                logits = self._backend.allocate((stop - start, self._vocabulary), "float32", for_host=True)
            found = _TokenStep(self._backend, self._runners, caches, logits, stop - start, self._width, self._rows)
        self._steps[start, stop] = found
        return found

    def _run(
        self, name: str, slot: Slot, feeds: dict[str, Buffer], results: dict[str, Buffer], start: int, stop: int
    ) -> None:
        slot.require_rows(name, start)
        runner, caches = self._runners[name], self.slots.caches_of(name, slot.index, slot.index + 1)
        feeds |= row_buffers(self._backend, runner.inputs, self._rows.arrays(start, stop, slot.positions))
        new_rows = caches.new_row_buffers(self._backend, stop - start)
        with self.pace.measured(name, stop - start):
            runner.run(feeds | caches.buffers, results | (new_rows or caches.as_outputs()))
            caches.store(new_rows, start)
            if self.pace.is_bound and self._backend.on == "gpu" and name == "trunk":
                results["tap"].rows(stop - start - 1, stop - start).read()  # waits for what was enqueued
        slot.valid[name] = stop
        self.computed_rows[name] += stop - start

    def _taps_of(self, slot: Slot, start: int, stop: int) -> Buffer:
        if stop > slot.tap_rows:
            raise RunFailed(f"rows {start} to {stop} are needed, but only {slot.tap_rows} were computed by the trunk")
        return self.slots.taps_of(slot, start, stop)

    def _rpn_buffers(self, rows: int) -> dict[str, Buffer]:
        """All its outputs but caches."""
        extents = {"batch": 1, "cache_length": self.slots.length, "sequence": rows}
        return {
            name: self._backend.allocate(_shape(tensor, extents), "float32", for_host=True)
            for name, tensor in self._runners["rpn"].outputs.items()
            if not tensor.is_cache
        }


class _TokenStep:
    """Trunk and tail for one row of B sequences, bound once: a step writes embeddings and `STEP_INPUTS` only."""

    def __init__(
        self,
        backend: Backend,
        runners: Mapping[str, Runner],
        caches: Mapping[str, CacheSet],
        logits: Buffer,
        batch: int,
        width: int,
        rows: RowFeeds,
    ) -> None:
        self._hidden = backend.allocate((batch, 1, width), "float32", for_host=True)
        tap, no_feature = (backend.allocate((batch, 1, width), "float32") for _ in range(2))
        embedded = {"inputs_embeds": self._hidden} | dict.fromkeys(deepstack_inputs(runners["trunk"]), no_feature)
        self._rows = rows
        self._row_buffers = step_buffers(backend, {**runners["trunk"].inputs, **runners["tail"].inputs}, batch)
        self._logits = logits
        both = (caches["trunk"], caches["tail"])
        self._new_rows = tuple(each.new_row_buffers(backend, 1) for each in both)
        steps = [
            self._bind(runners["trunk"], caches["trunk"], embedded, {"tap": tap}, 0),
            self._bind(runners["tail"], caches["tail"], {"tap": tap}, {"logits": logits}, 1),
        ]
        self._written = tuple(self._row_buffers[name] for name in STEP_INPUTS)
        for each, new_rows in zip(both, self._new_rows, strict=True):
            steps += each.store_step(backend, new_rows, self._row_buffers["write_index"])
        self._run = backend.chain(steps, (self._hidden, *self._written), (logits,))

    def _bind(
        self, runner: Runner, caches: CacheSet, feeds: dict[str, Buffer], results: dict[str, Buffer], which: int
    ) -> Callable[[], None]:
        place = {name: buffer for name, buffer in self._row_buffers.items() if name in runner.inputs}
        outputs = self._new_rows[which] or caches.as_outputs()
        return runner.bind(feeds | place | caches.buffers, results | outputs)

    def __call__(self, tokens: Sequence[NextToken]) -> FloatArray:
        """(B,V), which the next call overwrites."""
        self._hidden.write(_stacked([token.embedding for token in tokens]))
        rows, positions = [token.row for token in tokens], [token.position for token in tokens]
        for buffer, value in zip(self._written, self._rows.of_step(rows, positions), strict=True):
            buffer.write(value)
        self._run()
        logits: FloatArray = self._logits.read()
        return logits


def _stacked(embeddings: Sequence[FloatArray]) -> FloatArray:
    """(1,D) each -> (B,1,D)."""
    return embeddings[0][None] if len(embeddings) == 1 else np.stack(embeddings)


def _side_by_side(tokens: Sequence[NextToken]) -> Iterator[Sequence[NextToken]]:
    """Groups of tokens in adjacent slots."""
    if len(tokens) == 1:
        yield tokens
        return
    ordered = sorted(tokens, key=lambda token: token.slot.index)
    for _, run in itertools.groupby(enumerate(ordered), key=lambda pair: pair[1].slot.index - pair[0]):
        yield [token for _, token in run]


def row_count(piece: Rows) -> int:
    """The number of rows of a piece of embeddings."""
    return piece.embeds.shape[1] if isinstance(piece, ImageRows) else len(piece)


def deepstack_inputs(trunk: Runner) -> tuple[str, ...]:
    """The inputs of a trunk that are added behind its first layers, in the order of the layers."""
    names = [name for name, tensor in trunk.inputs.items() if tensor.role == "deepstack"]
    return tuple(sorted(names, key=lambda name: int(name.rpartition(".")[2])))


def _placed(pieces: Sequence[Rows]) -> Iterator[tuple[Rows, int]]:
    """Each piece that has rows, and the first of them."""
    place = 0
    for piece in filter(row_count, pieces):
        yield piece, place
        place += row_count(piece)


def _all_rows(results: Mapping[str, Buffer], name: str, first: int, stop: int) -> FloatArray:
    """An output (1,...,S_max) of a run over rows first..stop-1, up to the last: (1,...,stop).

    Where the cache was read only, those of the new rows are a separate output.
    """
    cached = results[name].read()[..., :stop]
    if f"new_{name}" in results:
        cached = np.concatenate([cached[..., :first], results[f"new_{name}"].read()], axis=-1)
    return np.array(cached, dtype=np.float32)


def _shape(tensor: TensorInfo, extents: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(extents[d] if isinstance(d, str) else d for d in tensor.dims)
