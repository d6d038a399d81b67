"""The graph of the region proposal network: scores of the rows of an image, and what else its last layer knows.

H heads, H_kv key heads, d channels of a head, N rows that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.bundle.graphs import RoleName
from sdrpn.export.decoder import FLOAT, INT64, DecoderAuthor, cast, layer_weights, projection_weights, row_of
from sdrpn.export.dialects import Dialect, Rotary, gather_rows
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable, norm
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec

__all__ = ["rpn_graph", "rpn_weights"]

Array = npt.NDArray[np.generic]


# Weights ------------------------------------------------------------------------------------------------------------


def rpn_weights(spec: ModelSpec) -> list[Weight]:
    """T-1 whole layers, the norm where there is one, and the last layer's norm, query and key."""
    rpn, llm = _rpn_of(spec), spec.llm
    last = f"rpn.layers.{rpn.layers - 1}"
    attention = f"{last}.attention"
    return [
        *(w for i in range(rpn.layers - 1) for w in layer_weights(llm, f"rpn.layers.{i}")),
        *([norm("rpn.norm.weight", "rpn.norm.weight", (llm.width,))] if rpn.outer_norm else []),
        norm(f"{last}.input_norm.weight", f"{last}.input_norm.weight", (llm.width,)),
        *projection_weights(llm, attention, "q", llm.heads * llm.head_dim),
        *projection_weights(llm, attention, "k", llm.kv_heads * llm.head_dim),
        *(
            norm(f"{attention}.{part}_norm.weight", f"{attention}.{part}_norm.weight", (llm.head_dim,))
            for part in ("qk" if llm.qk_norm else "")
        ),
        *(_mean_query(llm, attention) if rpn.prune_above else []),
    ]


def _mean_query(llm: LlmSpec, attention: str) -> list[Weight]:
    """The projection to the mean query of each group of heads that share a key head.

    Never quantised, since it has no tensor of its own in the checkpoint.
    """
    outputs, name = llm.kv_heads * llm.head_dim, f"{attention}.mean_q"

    def mean(arrays: Sequence[Array]) -> Array:
        (array,) = arrays
        exact = array.astype(np.float32)
        grouped = exact.reshape(llm.kv_heads, -1, llm.head_dim, *exact.shape[1:]).mean(axis=1)
        averaged: Array = grouped.reshape(outputs, *exact.shape[1:])
        return averaged.T

    weight = Weight(f"{name}.weight", (llm.width, outputs), "plain", (f"{attention}.q.weight",), mean)
    if not llm.attention_bias:
        return [weight]
    return [weight, Weight(f"{name}.bias", (outputs,), "plain", (f"{attention}.q.bias",), mean)]


# Graph --------------------------------------------------------------------------------------------------------------


def rpn_graph(spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
    """tap (B,S,D) -> scores (B,H,S_max) fp32 of the row at last_index against every cached position.

    With `sink_query` also how much the first row of the sequence looks at each (`sink_logits`), and its query, which is
    handed from run to run; with `prune_above` the highest score of any new row (`seen`). If the cache is read only,
    results against new rows are separate outputs.
    """
    rpn = _rpn_of(spec)
    g = GraphAuthor("rpn", dialect.opset, table)
    hidden = g.input(Declared("tap", FLOAT, ("batch", "sequence", spec.llm.width), "tap"))
    first_query = _declared_first_query(g, spec.llm) if rpn.sink_query else None
    author = DecoderAuthor.open(g, dialect, spec.llm, dtype)
    last_index = g.input(Declared("last_index", INT64, ("batch",), "last_index"))
    for index in range(rpn.layers - 1):
        hidden = author.layer(hidden, f"rpn.layers.{index}", index)
    _ScoreLayer(author, spec.llm, rpn, last_index).write(hidden, first_query)
    return g


def _rpn_of(spec: ModelSpec) -> RpnSpec:
    assert spec.rpn is not None
    return spec.rpn


def _declared_first_query(g: GraphAuthor, llm: LlmSpec) -> ir.Value:
    return g.input(Declared("first_query", FLOAT, ("batch", 1, 1, llm.head_dim), "first_query"))


@dataclass
class _ScoreLayer:
    """The last layer, which has only queries and keys."""

    author: DecoderAuthor
    llm: LlmSpec
    rpn: RpnSpec
    last_index: ir.Value

    def write(self, hidden: ir.Value, first_query: ir.Value | None) -> None:
        """Everything behind the whole layers, up to the outputs."""
        author, g, last = self.author, self.author.g, f"rpn.layers.{self.rpn.layers - 1}"
        attention = f"{last}.attention"
        with g.scope(last):
            normed = author.norm(hidden, "rpn.norm.weight") if self.rpn.outer_norm else hidden
            normed = author.norm(normed, f"{last}.input_norm.weight")
            rotary = author.rotary if self.rpn.rotary else None
            key = self._heads(normed, f"{attention}.k", self.llm.kv_heads, rotary)
            queries = self._queries(normed, attention, first_query)
            mean = self._mean_queries(normed, attention) if self.rpn.prune_above else None
        cache = author.declare_cache("score_key_cache")
        attended = author.store(cache, key)
        if self.author.dialect.updates_caches:
            self._compare(queries, mean, attended, "cache_length", "")
        else:
            self._compare(queries, mean, cache, "cache_length", "")
            self._compare(queries, mean, key, "sequence", "new_")

    def _heads(self, x: ir.Value, name: str, heads: int, rotary: Rotary | None) -> ir.Value:
        """x (B,S,D) -> (B,heads,S,d) of the last layer's q or k."""
        g = self.author.g
        projected = self.author.project(x, f"{name}.weight", biased=self.llm.attention_bias)
        scale = g.weight(f"{name}_norm.weight") if self.llm.qk_norm else None
        return self.author.heads(projected, heads, scale, rotary)

    def _queries(self, normed: ir.Value, attention: str, first_query: ir.Value | None) -> ir.Value:
        """(B,H_kv,group,d) scaled, of the row at last_index; with sinks a further one, of the sequence's first row."""
        author, g, llm = self.author, self.author.g, self.llm
        folded = g.constant([0, llm.kv_heads, llm.heads // llm.kv_heads, llm.head_dim], INT64)
        scale = g.constant(llm.head_dim**-0.5, author.dtype)
        if first_query is None:
            rotary = author.rotary_at(_column(g, self.last_index)) if self.rpn.rotary else None
            query = self._heads(row_of(g, normed, self.last_index), f"{attention}.q", llm.heads, rotary)
            return g.op.Mul(g.op.Reshape(query, folded), scale)
        last = _column(g, self.last_index)
        rows = g.op.Concat(last, g.op.Mul(last, g.constant([0], INT64)), axis=1)  # (B,2): last and first
        rotary = author.rotary_at(rows) if self.rpn.rotary else None
        both = self._heads(gather_rows(g, normed, rows), f"{attention}.q", llm.heads, rotary)  # (B,H,2,d)
        query, other = g.split(both, ["query", "first"], [1, 1], axis=2)
        first = self._first(other, first_query)
        query = g.op.Reshape(query, folded)
        # The same for every key head, as one more query of its group.
        spread = g.op.Expand(cast(g, first, author.dtype), g.constant([1, llm.kv_heads, 1, 1], INT64))
        return g.op.Mul(g.op.Concat(query, spread, axis=2), scale)

    def _first(self, queries: ir.Value, earlier: ir.Value) -> ir.Value:
        """The first head's query of the sequence's first row: of this run (B,H,1,d) if it begins there."""
        g, llm = self.author.g, self.llm
        others = [llm.heads - 1] if llm.heads > 1 else []
        names = ["first_head", *(["other_heads"] if others else [])]
        here = g.split(queries, names, [1, *others], axis=1)[0]
        start = g.op.Unsqueeze(self.author.write_index, g.constant([1, 2, 3], INT64))
        begins = g.op.Equal(start, g.constant(0, INT64))
        first = g.op.Where(begins, cast(g, here, FLOAT), earlier)
        g.output(first, Declared("first_query_out", FLOAT, ("batch", 1, 1, llm.head_dim), "first_query"))
        return first

    def _mean_queries(self, normed: ir.Value, attention: str) -> ir.Value:
        """(B,S,H_kv*d) scaled: its products with keys side by side are the mean over all heads."""
        author, g, llm = self.author, self.author.g, self.llm
        projected = author.project(normed, f"{attention}.mean_q.weight", biased=llm.attention_bias)
        rotary = author.rotary if self.rpn.rotary else None
        heads = author.heads(projected, llm.kv_heads, None, rotary)
        rows = g.op.Reshape(
            g.op.Transpose(heads, perm=[0, 2, 1, 3]), g.constant([0, 0, llm.kv_heads * llm.head_dim], INT64)
        )
        return g.op.Mul(rows, g.constant(llm.head_dim**-0.5 / llm.kv_heads, author.dtype))

    def _compare(self, queries: ir.Value, mean: ir.Value | None, keys: ir.Value, length: str, prefix: str) -> None:
        """Declare the results against keys (B,H_kv,N,d)."""
        g, llm, group = self.author.g, self.llm, self.llm.heads // self.llm.kv_heads
        by_channel = g.op.Transpose(keys, perm=[0, 1, 3, 2])
        product = g.op.MatMul(queries, by_channel)  # (B,H_kv,group or group+1,N)
        if self.rpn.sink_query:
            product, sinks = g.split(product, ["scores", "sinks"], [group, 1], axis=2)
            # A mean over the key heads is one over all heads, of which each has as many.
            looked = g.op.ReduceMean(cast(g, sinks, FLOAT), g.constant([1, 2], INT64), keepdims=0)
            self._output(looked, _role("sink_logits", prefix), length)
        scores = g.op.Reshape(product, g.constant([0, llm.heads, -1], INT64))
        self._output(cast(g, scores, FLOAT), _role("scores", prefix), llm.heads, length)
        if mean is None:
            return
        side_by_side = g.op.Reshape(by_channel, g.constant([0, llm.kv_heads * llm.head_dim, -1], INT64))
        every = g.op.MatMul(mean, side_by_side)  # (B,S,N): no tensor over heads, rows and rows is made
        seen = g.op.ReduceMax(cast(g, every, FLOAT), g.constant([1], INT64), keepdims=0)
        self._output(seen, _role("seen", prefix), length)

    def _output(self, value: ir.Value, role: RoleName, *dims: int | str) -> None:
        self.author.g.output(value, Declared(role, FLOAT, ("batch", *dims), role))


_ROLES: dict[tuple[str, str], RoleName] = {
    ("scores", ""): "scores",
    ("scores", "new_"): "new_scores",
    ("sink_logits", ""): "sink_logits",
    ("sink_logits", "new_"): "new_sink_logits",
    ("seen", ""): "seen",
    ("seen", "new_"): "new_seen",
}


def _role(name: str, prefix: str) -> RoleName:
    return _ROLES[name, prefix]


def _column(g: GraphAuthor, row: ir.Value) -> ir.Value:
    """(B,) -> (B,1)."""
    return g.op.Unsqueeze(row, g.constant([1], INT64))
