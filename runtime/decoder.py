"""The three decoder graphs with their caches and taps: run rows, step a token, keep what stays true.

Works on hidden states and positions. Knows nothing about images, prompts, crops or tokens' meaning.
One sequence at a time (B = 1). Rows are positions: row i of every cache and of the taps belongs to position i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.kv_cache import CacheSet, cache_set_from_runner
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner

__all__ = ["Decoder", "Rows", "row_count"]

FloatArray = npt.NDArray[np.float32]
Rows = FloatArray | Buffer  # (rows,D) of the host, or (1,rows,D) where the backend computes
# Cache lengths are rounded up to this many rows, so that a few tokens more do not mean new buffers.
CACHE_ROUNDING = 64


class Decoder:
    """Trunk, RPN and tail over one sequence.

    `valid[name]` counts the rows from 0 that a graph's caches (and for the trunk the taps) hold for the current
    sequence. Writing rows at `start` drops everything behind them.
    """

    def __init__(
        self,
        backend: Backend,
        runners: Mapping[str, Runner],
        width: int,
        vocabulary: int,
        contexts: Sequence[int] = (),
    ) -> None:
        """Args: contexts: the cache lengths that the engines have profiles for, where that is more than one."""
        self._backend = backend
        self._runners = dict(runners)
        self._width = width
        self._logits = backend.allocate((1, vocabulary), "float32", for_host=True)
        self._caches = {name: cache_set_from_runner(runner) for name, runner in runners.items()}
        fixed = [caches.fixed_rows for caches in self._caches.values() if caches.fixed_rows is not None]
        # The cache lengths that engines take, shortest first; none: a graph, which takes any.
        self._lengths = tuple(sorted(contexts)) or ((min(fixed),) if fixed else ())
        self.max_rows: int | None = max(self._lengths, default=None)
        self._taps = backend.allocate((1, 0, width), "float32")
        self._tap_rows = 0  # taps of decoded tokens are not kept: nothing asks for them again
        self.length = 0
        self.valid = dict.fromkeys(runners, 0)
        self.computed_rows = dict.fromkeys(runners, 0)  # prefilled since the decoder was made
        self._step: _TokenStep | None = None

    def reset(self, rows: int, ahead: int = 0) -> None:
        """Forget the sequence; make room for `rows`, giving back what a longer one needed.

        Args:
            ahead: rows that may follow, one by one. Engines for several contexts do not make room for them: attention
                costs by the length of the caches, which grow when a step needs it
        """
        self.truncate(0)
        length = self._length_for(rows, ahead)
        if self.length != length:
            self._reallocate(length, keep=False)

    def reserve(self, rows: int, ahead: int = 0) -> None:
        """Make room for `rows` positions; rows that are valid are kept. `ahead`: as in `reset`."""
        length = self._length_for(rows, ahead)
        if length > self.length:
            self._reallocate(length, keep=True)

    def _length_for(self, rows: int, ahead: int = 0) -> int:
        if self.max_rows is None:
            return _rounded(rows + ahead)
        if rows + ahead > self.max_rows:
            raise RunFailed(
                f"{rows + ahead} rows are past the caches of {self.max_rows} rows that the engines were built for"
            )
        return min(length for length in self._lengths if length >= rows)

    def _reallocate(self, length: int, keep: bool) -> None:
        if not keep:
            self.truncate(0)
        kept, tap_rows = dict(self.valid), self._tap_rows
        # Memory may run out half-way: until all is in place, there are no rows.
        self._step, self.length = None, 0
        self.truncate(0)
        for name, caches in self._caches.items():
            caches.resize(self._backend, length, kept[name])
        self._taps = self._taps.with_rows(length, tap_rows)
        self.valid, self._tap_rows, self.length = kept, tap_rows, length

    def run_trunk(self, embeds: FloatArray | Sequence[Rows], start: int) -> None:
        """embeds (S,D) at positions start..start+S-1 -> their taps and caches.

        Args:
            embeds: all rows, or pieces of them in order: (rows,D) of the host or (1,rows,D) where the backend computes
        """
        pieces = (embeds,) if isinstance(embeds, np.ndarray) else embeds
        rows = sum(row_count(piece) for piece in pieces)
        stop = start + rows
        if stop > self.length:
            raise RunFailed(f"{rows} rows at {start} are past the cache of {self.length} rows; reserve more")
        hidden = self._joined(pieces, rows)
        for first, end in self._parts(start, stop):
            feeds, results = hidden.rows(first - start, end - start), self._taps.rows(first, end)
            self._run("trunk", {"inputs_embeds": feeds}, {"tap": results}, first, end)
        self._tap_rows = stop

    def _joined(self, pieces: Sequence[Rows], rows: int) -> Buffer:
        """(1,rows,D), without a detour over the host for what is not there."""
        if len(pieces) == 1:
            return self._buffer(pieces[0])
        hidden = self._backend.allocate((1, rows, self._width), "float32")
        place = 0
        for piece in filter(row_count, pieces):
            hidden.copy_rows(self._buffer(piece), row_count(piece), place)
            place += row_count(piece)
        return hidden

    def _buffer(self, piece: Rows) -> Buffer:
        if not isinstance(piece, np.ndarray):
            return piece
        buffer = self._backend.allocate((1, *piece.shape), "float32", for_host=True)
        buffer.write(piece[None])
        return buffer

    def run_rpn(self, stop: int) -> FloatArray:
        """Scores (H, stop) of the last row against every position, over the taps that the RPN has not seen."""
        for first, end in self._parts(min(self.valid["rpn"], stop - 1), stop):
            results = self._score_buffers(end - first)
            self._run("rpn", {"tap": self._taps_of(first, end)}, results, first, end)
        scores = results["scores"].read()[0, :, :stop]
        self._require_finite("scores of the RPN", scores)
        if "new_scores" in results:  # the cache was read only: the rows of this run are scored on their own
            scores = np.concatenate([scores[:, :first], results["new_scores"].read()[0]], axis=1)
        return np.array(scores, dtype=np.float32)

    def run_tail(self, start: int, stop: int) -> FloatArray:
        """Logits (V,) of row stop-1, over taps start..stop-1. A view: the next run overwrites it."""
        for first, end in self._parts(start, stop):
            self._run("tail", {"tap": self._taps_of(first, end)}, {"logits": self._logits}, first, end)
        logits: FloatArray = self._logits.read()[0]
        self._require_finite("logits of the next token", logits)
        return logits

    def _parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Rows start..stop-1 in parts of equal length, none longer than the backend wants."""
        count = 1 if self._backend.prefill_rows is None else -(-(stop - start) // self._backend.prefill_rows)
        edges = [start + (stop - start) * number // max(1, count) for number in range(max(1, count) + 1)]
        return list(itertools.pairwise(edges))

    def step(self, embedding: FloatArray, position: int) -> FloatArray:
        """One new token: its embedding (1,D) at `position` -> logits (V,), a view that the next run overwrites."""
        self._require_rows("trunk", position)
        self._require_rows("tail", position)
        if position >= self.length:
            if position >= max(self._lengths, default=0):
                raise RunFailed(f"position {position} is past the cache of {self.length} rows; reserve more")
            self.reserve(position + 1)  # engines for a longer context take over, with the rows that are there
        if self._step is None:
            self._step = _TokenStep(self._backend, self._runners, self._caches, self._logits, self._width)
        logits = self._step(embedding, position)
        self._require_finite("logits of the next token", logits)
        self.valid["trunk"] = self.valid["tail"] = position + 1
        return logits

    def discard(self) -> None:
        """Forget the sequence and give all caches back; the next ones are zeros.

        Rows that are forgotten otherwise stay, and are multiplied with weights of zero: an infinite number among them
        would turn every later result into NaN.
        """
        self._step, self.length = None, 0
        self.truncate(0)
        for caches in self._caches.values():
            caches.buffers.clear()
        self._taps = self._backend.allocate((1, 0, self._width), "float32")

    def close(self) -> None:
        """Free runners and buffers."""
        self._step = None
        for runner in self._runners.values():
            runner.close()
        for caches in self._caches.values():
            caches.buffers.clear()

    def truncate(self, rows: int) -> None:
        """Forget everything behind the first `rows` positions."""
        self.valid = {name: min(count, rows) for name, count in self.valid.items()}
        self._tap_rows = min(self._tap_rows, rows)

    def _run(self, name: str, feeds: dict[str, Buffer], results: dict[str, Buffer], start: int, stop: int) -> None:
        self._require_rows(name, start)
        runner, caches = self._runners[name], self._caches[name]
        feeds |= _indices(self._backend, runner.inputs, start, stop)
        new_rows = caches.new_row_buffers(self._backend, stop - start)
        runner.run(feeds | caches.buffers, results | (new_rows or caches.as_outputs()))
        caches.store(new_rows, start)
        self.valid[name] = stop
        self.computed_rows[name] += stop - start

    def _taps_of(self, start: int, stop: int) -> Buffer:
        if stop > self._tap_rows:
            raise RunFailed(f"rows {start} to {stop} are asked for, but only {self._tap_rows} went through the trunk")
        return self._taps.rows(start, stop)

    def _score_buffers(self, rows: int) -> dict[str, Buffer]:
        outputs = self._runners["rpn"].outputs
        extents = {"batch": 1, "cache_length": self.length, "sequence": rows}
        return {
            name: self._backend.allocate(_shape(outputs[name], extents), "float32", for_host=True)
            for name in ("scores", "new_scores")
            if name in outputs
        }

    def _require_finite(self, what: str, results: FloatArray) -> None:
        """Raises RunFailed where the largest, or any, is not finite; nothing of the sequence is kept then."""
        if math.isfinite(results.max()):  # NaN where there is one
            return
        self.discard()
        raise RunFailed(
            f"the {what} are NaN or infinite; expected finite numbers. A half-precision graph overflowed or a file is "
            "damaged: compare the bundle with its checkpoint, or export it in fp32"
        )

    def _require_rows(self, name: str, start: int) -> None:
        if start > self.valid[name]:
            raise RunFailed(f"{name}: rows are written from {start}, but only {self.valid[name]} are there")


class _TokenStep:
    """Trunk and tail for one row, bound once: a step writes one embedding row and two integers."""

    def __init__(
        self,
        backend: Backend,
        runners: Mapping[str, Runner],
        caches: Mapping[str, CacheSet],
        logits: Buffer,
        width: int,
    ) -> None:
        self._hidden = backend.allocate((1, 1, width), "float32", for_host=True)
        tap = backend.allocate((1, 1, width), "float32")
        self._indices = _indices(backend, {**runners["trunk"].inputs, **runners["tail"].inputs}, 0, 1)
        self._logits = logits
        both = (caches["trunk"], caches["tail"])
        self._new_rows = tuple(one.new_row_buffers(backend, 1) for one in both)
        steps = [
            self._bind(runners["trunk"], caches["trunk"], {"inputs_embeds": self._hidden}, {"tap": tap}, 0),
            self._bind(runners["tail"], caches["tail"], {"tap": tap}, {"logits": logits}, 1),
        ]
        self._written = (self._indices["position_ids"], self._indices["write_index"])
        for one, rows in zip(both, self._new_rows, strict=True):
            steps += one.store_step(backend, rows, self._indices["write_index"])
        self._run = backend.chain(steps, (self._hidden, *self._written), (logits,))

    def _bind(
        self, runner: Runner, caches: CacheSet, feeds: dict[str, Buffer], results: dict[str, Buffer], which: int
    ) -> Callable[[], None]:
        indices = {name: buffer for name, buffer in self._indices.items() if name in runner.inputs}
        outputs = self._new_rows[which] or caches.as_outputs()
        return runner.bind(feeds | indices | caches.buffers, results | outputs)

    def __call__(self, embedding: FloatArray, position: int) -> FloatArray:
        self._hidden.write(embedding)
        for buffer in self._written:
            buffer.write(np.array(position, np.int64))
        self._run()
        logits: FloatArray = self._logits.read()[0]
        return logits


def row_count(piece: Rows) -> int:
    """Of a piece of embeddings."""
    return len(piece) if isinstance(piece, np.ndarray) else piece.shape[1]


def _indices(backend: Backend, inputs: Mapping[str, TensorInfo], start: int, stop: int) -> dict[str, Buffer]:
    """position_ids (1,S), write_index (1,) and, where the graph asks for it, last_index (1,)."""
    values: dict[str, npt.NDArray[Any]] = {
        "position_ids": np.arange(start, stop, dtype=np.int64)[None],
        "write_index": np.array([start], np.int64),
        "last_index": np.array([stop - start - 1], np.int64),
    }
    buffers = {}
    for name, value in values.items():
        if name in inputs:
            buffers[name] = backend.allocate(value.shape, "int64", for_host=True)
            buffers[name].write(value)
    return buffers


def _shape(tensor: TensorInfo, extents: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(extents[d] if isinstance(d, str) else d for d in tensor.dims)


def _rounded(rows: int) -> int:
    return -(-rows // CACHE_ROUNDING) * CACHE_ROUNDING
