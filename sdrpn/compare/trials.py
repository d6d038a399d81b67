"""Trial runs of a graph: seeded inputs, and the expected outputs from PyTorch.

B batch (1), S new rows, N cached and new rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdrpn.bundle.bundle import TensorInfo, Variant
from sdrpn.bundle.cache_codes import RowCodes, decoded_caches, row_codes
from sdrpn.bundle.graphs import graph_named
from sdrpn.bundle.number_types import numpy_type
from sdrpn.bundle.signatures import GraphSignature
from sdrpn.compare.pictures import random_photograph
from sdrpn.families.family import VisionInputs
from sdrpn.families.registry import family_of
from sdrpn.method.gate import MAP_STATISTICS
from sdrpn.method.spec import RpnSpec
from sdrpn.model.base import SdRpnModel
from sdrpn.model.gate import Gate
from sdrpn.model.layers import KvCache, frequencies
from sdrpn.model.looks import encoded_look
from sdrpn.model.rpn import Rpn, ScoreLayer
from sdrpn.model.vision import LookTokens

__all__ = ["Trial", "graph_trials"]

Array = NDArray[Any]

_SEED = 0
_ROWS = 40  # of all runs of a decoder together: enough to exercise caches and positions
_LAST_POSITION = 4095  # beyond it, a frequency's last bit changes angles by more than the limit
_STALE_ROWS = 5  # after the written rows: their content must not matter


@dataclass(frozen=True)
class Trial:
    """One run of a graph and its expected outputs. An expected array may be shorter: rows after it are undefined."""

    label: str
    feeds: dict[str, Array]
    expected: dict[str, Array]
    signature: GraphSignature
    codes: RowCodes | None = None  # of the caches

    def decoded(self, results: Mapping[str, Array]) -> Mapping[str, Array]:
        """The results, with rows in 8 bits as the numbers that they stand for."""
        return results if self.codes is None else decoded_caches(self.codes, results, self.signature.scales)

    def written(self, output: str, array: Array) -> Array:
        """For a whole cache, the rows that this run wrote; other outputs unchanged."""
        if output not in self.signature.outputs or self.signature.outputs[output].role != "cache":
            return array
        indices = {tensor.role: name for name, tensor in self.signature.inputs.items()}
        start = int(self.feeds[indices["write_index"]][0])
        return array[:, :, start : start + self.feeds[indices["row_index"]].shape[1]]


def graph_trials(
    model: SdRpnModel, graph: str, signature: GraphSignature, variant: Variant, *, max_context: int
) -> Iterator[Trial]:
    """The runs of a graph, by its name in `sdrpn.bundle.graphs`.

    Args:
        model: float32
        signature: for the types of the caches
        variant: for its dialect and cache form
        max_context: the bundle's limit, in tokens
    """
    if graph == "vision":
        return _vision_trials(model, signature)
    codes = row_codes(variant.kv_cache) if graph_named(graph).coded_caches else None
    return _DecoderTrials(model, graph, variant.dialect, max_context, codes).all(signature)


@torch.inference_mode()
def _vision_trials(model: SdRpnModel, signature: GraphSignature) -> Iterator[Trial]:
    """Pictures one by one, and together where all are squares: several crops are encoded together."""
    looks = _looks(model)
    outputs = [_vision_outputs(model, encoded_look(model, look)) for look in looks]
    if family_of(model.spec).square(model.spec.vision) is not None:
        together = {name: np.concatenate([look[name] for look in looks]) for name in looks[0]}
        expected = {name: np.concatenate([found[name] for found in outputs]) for name in outputs[0]}
        yield Trial(f"{len(looks)} pictures", together, expected, signature)
        looks, outputs = looks[1:], outputs[1:]
    for number, (look, found) in enumerate(zip(looks, outputs, strict=True), start=1):
        label = "1 picture" if len(looks) == 1 else f"picture {number}"
        yield Trial(label, dict(look), found, signature)


def _vision_outputs(model: SdRpnModel, look: LookTokens) -> dict[str, Array]:
    """By the names that the family gives them."""
    names = [tensor.name for tensor in family_of(model.spec).vision_outputs(model.spec)]
    return {name: _array(value) for name, value in zip(names, (look.embeds, *look.deepstack), strict=True)}


@dataclass(frozen=True)
class _Chunk:
    """Rows start..stop-1 of a sequence, which a graph takes in one run."""

    label: str
    start: int
    stop: int
    last_index: int  # the query row, counted from `start`
    cache_length: int


class _RecordingCache(KvCache):
    """Keeps each layer's latest keys and values of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.rows[layer] = super().append(layer, key, value)
        return self.rows[layer]

    def by_name(self, first_layer: int = 0) -> dict[str, Array]:
        """(B,H_kv,N,head_dim) under the names of the graph's inputs."""
        names = ("key_cache", "value_cache")
        return {
            f"{name}.{first_layer + layer}": _array(rows)
            for layer, pair in self.rows.items()
            for name, rows in zip(names, pair, strict=True)
        }


class _DecoderTrials:
    """One sequence for all decoder graphs; PyTorch takes it whole, the graphs in chunks.

    The last row has a position at the end of the context, far after the others: it shows that row and position are
    independent, and that rotary angles are right there, without so long a cache.
    """

    def __init__(self, model: SdRpnModel, graph: str, dialect: str, max_context: int, codes: RowCodes | None) -> None:
        self.model, self.graph, self.dialect, self.codes = model, graph, dialect, codes
        self.near_rows = min(_ROWS, max_context)
        last_position = min(max_context - 1, _LAST_POSITION)
        far = [last_position] if last_position >= self.near_rows else []
        numbers, axis_of = np.array([*range(self.near_rows), *far]), family_of(model.spec).axis_of(model.spec)
        # On several axes one in which rows differ from the others: none may be taken for another.
        axes = 1 if axis_of is None else int(axis_of.max()) + 1
        self.placed = np.stack([numbers // (axis + 1) for axis in range(axes)])
        self.axis_of = axis_of
        self.positions = torch.from_numpy(self.placed[0] if axis_of is None else self.placed[axis_of].T)[None]
        self.rng = np.random.default_rng(_SEED)

    @torch.inference_mode()
    def all(self, signature: GraphSignature) -> Iterator[Trial]:
        """The chunks, each with the caches that the previous ones would have written."""
        embeds, deepstack = self._embeds()
        trunk_cache = _RecordingCache()
        tap = self.model.trunk(embeds, self.positions, trunk_cache, deepstack)
        if self.graph == "trunk":
            features = {f"deepstack.{number}": feature for number, feature in enumerate(deepstack)}
            values, caches = {"inputs_embeds": embeds, **features}, trunk_cache.by_name()
        else:
            values, caches = {"tap": tap}, self._caches_above(tap)
        for chunk in self._chunks():
            rows = {name: _array(value[:, chunk.start : chunk.stop]) for name, value in values.items()}
            feeds = {**rows, **self._row_feeds(chunk, signature), **self._first_query(tap, chunk)}
            feeds |= {"map_statistics": self._map_statistics(chunk)}
            cache_feeds = self._cache_feeds(caches, chunk, signature)
            expected = self._results(tap, chunk) | self._cache_results(caches, cache_feeds, chunk, signature)
            wanted = {name: feeds[name] for name in feeds if name in signature.inputs}
            yield Trial(chunk.label, wanted | cache_feeds, expected, signature, self.codes)

    def _chunks(self) -> Iterator[_Chunk]:
        """A prefill, more rows, one row, and one row at the end of the context."""
        rows = self.near_rows
        cut = max(1, rows * 2 // 3)
        # In the first chunk the query row is not the last one, as for short entries of a ragged batch.
        chunks = [
            _Chunk("prefill", 0, cut, max(0, cut - 3), rows + _STALE_ROWS),
            _Chunk("second chunk", cut, rows - 1, rows - 2 - cut, rows + _STALE_ROWS),
            _Chunk("one row", rows - 1, rows, 0, rows + _STALE_ROWS),
        ]
        if self.positions.shape[1] > rows:
            label = f"one row at position {int(self.placed[0, -1])}"
            chunks.append(_Chunk(label, rows, rows + 1, 0, rows + 1 + _STALE_ROWS))
        return (chunk for chunk in chunks if chunk.start < chunk.stop)

    def _embeds(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(1,N,D): text, some image rows, text; and features of these rows, 0 at text."""
        count = self.positions.shape[1]
        ids = torch.from_numpy(self.rng.integers(0, self.model.spec.llm.vocabulary, count))
        text, look = self.model.embed(ids)[None], encoded_look(self.model, _looks(self.model)[0])

        def between(rows: Tensor, image: Tensor) -> Tensor:
            return torch.cat((rows[:, :4], image[:, : count // 2], rows[:, 4:]), dim=1)[:, :count]

        nothing = torch.zeros_like(text)
        return between(text, look.embeds), tuple(between(nothing, feature) for feature in look.deepstack)

    def _caches_above(self, tap: Tensor) -> dict[str, Array]:
        cache = _RecordingCache()
        if self.graph == "tail":
            self.model.tail.hidden(tap, self.positions, cache)
            return cache.by_name(self.model.spec.tap_layer)
        if self.graph == "gate":
            if not self._gate().is_probe:
                self._gate()(tap, self.positions, cache=cache)
            return cache.by_name()
        last = self._rpn().layers[-1]
        assert isinstance(last, ScoreLayer)
        keys = last.attention.keys(self._scored(tap, cache), self.positions)  # (1,H_kv,N,d)
        return cache.by_name() | {"score_key_cache": _array(keys)}

    def _scored(self, tap: Tensor, cache: KvCache | None = None) -> Tensor:
        """What the RPN's last layer multiplies: (1,N,D)."""
        rpn = self._rpn()
        *whole, last = rpn.layers
        assert isinstance(last, ScoreLayer)
        x = tap
        for index, layer in enumerate(whole):
            x = layer(x, self.positions, cache, index)
        normed: Tensor = last.input_norm(rpn.norm(x))
        return normed

    def _map_statistics(self, chunk: _Chunk) -> Array:
        """(1,N) numbers as they may be, others for every chunk."""
        rng = np.random.default_rng((_SEED, chunk.start))
        return rng.random((1, len(MAP_STATISTICS)), np.float32)

    def _first_query(self, tap: Tensor, chunk: _Chunk) -> dict[str, Array]:
        """The query that finds sinks, as an earlier run found it; before the first run anything."""
        if self.graph != "rpn" or not self._rpn_spec().sink_query:
            return {}
        if chunk.start == 0:
            shape = (1, 1, 1, self.model.spec.llm.head_dim)
            return {"first_query": self.rng.standard_normal(shape, np.float32)}
        return {"first_query": self._found_query(tap)}

    def _found_query(self, tap: Tensor) -> Array:
        """(1,1,1,d): the first row's query of the first head."""
        last = self._rpn().layers[-1]
        assert isinstance(last, ScoreLayer)
        return _array(last.attention.queries(self._scored(tap)[:, :1], self.positions[:, :1])[:, :1])

    def _rpn_spec(self) -> RpnSpec:
        assert self.model.spec.rpn is not None
        return self.model.spec.rpn

    def _gate(self) -> Gate:
        assert self.model.gate is not None
        return self.model.gate

    def _rpn(self) -> Rpn:
        assert self.model.rpn is not None
        return self.model.rpn

    def _results(self, tap: Tensor, chunk: _Chunk) -> dict[str, Array]:
        """The graph's outputs other than caches."""
        if self.graph == "trunk":
            return {"tap": _array(tap[:, chunk.start : chunk.stop])}
        seen, positions = tap[:, : chunk.stop], self.positions[:, : chunk.stop]
        asking = torch.tensor([chunk.start + chunk.last_index])
        if self.graph == "tail":
            return {"logits": _array(self.model.tail(seen, positions, last_index=asking))}
        if self.graph == "gate":
            statistics = torch.from_numpy(self._map_statistics(chunk))
            return {"gate_logit": _array(self._gate()(seen, positions, asking, statistics=statistics))[:, None]}
        rpn, spec = self._rpn(), self._rpn_spec()
        results = {"scores": _array(rpn(seen, positions, asking))}  # (1,H,stop)
        if spec.sink_query:
            results["sink_logits"] = _array(rpn.sink_logits(seen, positions))
        if spec.prune_above:
            results["seen"] = _array(rpn.row_scores(seen, positions, chunk.start).mean(dim=1).amax(dim=1))
        if self.dialect != "fused":
            new = {f"new_{name}": array[..., chunk.start :] for name, array in results.items()}
            results = {name: array[..., : chunk.start] for name, array in results.items()} | new
        return results | ({"first_query_out": self._found_query(tap)} if spec.sink_query else {})

    def _row_feeds(self, chunk: _Chunk, signature: GraphSignature) -> dict[str, Array]:
        """Row indices, the query row, and rotary tables of the rows."""
        placed, inputs = self.placed[:, chunk.start : chunk.stop], signature.inputs
        turning = frequencies(self.model.spec.llm)
        tables = turning.tables(placed[0] if self.axis_of is None else placed, self.axis_of)
        named = {name: table for name, table in zip(("rope_cos", "rope_sin"), tables, strict=True) if name in inputs}
        return {
            "row_index": np.arange(chunk.start, chunk.stop, dtype=np.int64)[None],
            "write_index": np.array([chunk.start], np.int64),
            "last_index": np.array([chunk.last_index], np.int64),
            **{name: self._table(table, inputs[name]) for name, table in named.items()},
        }

    def _table(self, table: Array, tensor: TensorInfo) -> Array:
        """(1,S,head_dim/2), with an axis for the heads in the dialect primitive."""
        shaped = table[None] if self.dialect == "fused" else table[None, None]
        return shaped.astype(numpy_type(tensor.dtype))

    def _cache_feeds(self, caches: Mapping[str, Array], chunk: _Chunk, signature: GraphSignature) -> dict[str, Array]:
        """The caches before the chunk, with noise in rows that were not written yet."""
        feeds = {}
        for name, rows in caches.items():
            batch, heads, _, head_dim = rows.shape
            feed = 3 * self.rng.standard_normal((batch, heads, chunk.cache_length, head_dim), np.float32)
            feed[:, :, : chunk.start] = rows[:, :, : chunk.start]
            if self.codes is None:
                feeds[name] = feed.astype(numpy_type(signature.inputs[name].dtype))
            else:
                scales = signature.scales[name]
                feeds[name], feeds[scales] = self.codes.encoded(feed, signature.inputs[scales].dtype)
        return feeds

    def _cache_results(
        self, caches: Mapping[str, Array], feeds: Mapping[str, Array], chunk: _Chunk, signature: GraphSignature
    ) -> dict[str, Array]:
        """The new rows, or the whole cache with only the new rows changed; rows in 8 bits as numbers."""
        results = {}
        feeds = feeds if self.codes is None else decoded_caches(self.codes, feeds, signature.scales)
        for name, rows in caches.items():
            new = rows[:, :, chunk.start : chunk.stop]
            output = signature.cache_outputs[name]
            if output.role == "cache":
                whole = feeds[name].astype(np.float32)
                whole[:, :, chunk.start : chunk.stop] = new
                new = whole
            results[output.name] = new
        return results


def _looks(model: SdRpnModel) -> list[VisionInputs]:
    """The first looks at a wide and a tall picture."""
    family, sizes = family_of(model.spec), ((360, 240), (200, 320))
    pictures = (random_photograph(_SEED + index, size) for index, size in enumerate(sizes))
    return [family.first_look(picture, model.spec.vision) for picture in pictures]


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.float().numpy()
    return array
