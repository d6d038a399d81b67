"""The two dialects of a decoder's operators: with the LLM operators of opset 24, or with opset 20 only.

    fused      RMSNormalization, RotaryEmbedding, TensorScatter into the cache (in place when the same buffer is
               bound to both sides), Attention
    primitive  the same arithmetic in basic operators; caches are read only, the outputs are the new rows

One mask per graph decides by row: causality, stale entries after the written rows, ragged batches. `is_causal` is never
used: some parsers align it to the wrong corner if there are more keys than queries. Positions are only in the rotary
tables, which are inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from sdrpn.bundle.numerics import DialectName
from sdrpn.export.graph import GraphAuthor

__all__ = ["DIALECTS", "Dialect", "FusedDialect", "PrimitiveDialect", "Rotary", "gather_rows"]

Read = Callable[[ir.Value], ir.Value]  # from stored rows to the values for the computation


@dataclass(frozen=True)
class Rotary:
    """Rotary tables: cos and sin of the angles of every row, with the axes of the dialect."""

    cos: ir.Value
    sin: ir.Value


class Dialect(Protocol):
    """How a decoder's parts are written. Shapes: x (B,S,D), heads (B,H,S,head_dim), caches (B,H_kv,S_max,head_dim)."""

    name: DialectName
    opset: int
    updates_caches: bool  # in place; else caches are read only, and new rows are separate outputs
    cache_output: str  # name of a cache's output: the whole cache, or its new rows
    cache_output_length: str  # its symbolic length
    table_axes: tuple[int | str, ...]  # of the rotary tables, before head_dim/2
    rotates_in_one: bool  # operator; else in several
    attends_with_one_row: bool  # whether attention can be computed for a single row; else that row is selected from all
    heads_of_one_product: bool  # whether queries, keys and values must come out of one product for fast engines

    def rms_norm(self, g: GraphAuthor, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
        """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, fp32."""
        ...

    def norm_heads(self, g: GraphAuthor, x: ir.Value, scales: ir.Value, epsilon: float, head_dim: int) -> ir.Value:
        """The same over each head of x (B,S,H,head_dim), each with its own of the scales (H,head_dim)."""
        ...

    def table_rows(self, g: GraphAuthor, table: ir.Value, rows: ir.Value) -> ir.Value:
        """A rotary table at rows (B,R) of its sequence, with the same axes."""
        ...

    def rotate(self, g: GraphAuthor, x: ir.Value, rotary: Rotary) -> ir.Value:
        """Rotary embedding of heads, first half against second half (as LLaMA pairs them)."""
        ...

    def mask(
        self,
        g: GraphAuthor,
        row_index: ir.Value,
        keys: ir.Value,
        write_index: ir.Value,
        rows: ir.Value,
        window: int | None,
    ) -> ir.Value:
        """(B,1,S,keys) bool, kv_index <= row_index: the keys that the queries of the rows `row_index` (B,S) attend to.

        With a window also row_index - window < kv_index.
        `keys` is a cache; `rows` (B,S_new) has an entry for every new row, which are written from `write_index` (B) on.
        """
        ...

    def update_cache(
        self, g: GraphAuthor, cache: ir.Value, new: ir.Value, write_index: ir.Value, read: Read
    ) -> tuple[ir.Value, ir.Value]:
        """Write new rows into a cache: (tensor to attend to, output)."""
        ...

    def attend(
        self, g: GraphAuthor, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, shape: AttentionShape
    ) -> ir.Value:
        """softmax(q k^T / sqrt(head_dim)) v as (B,H,S,head_dim)."""
        ...


@dataclass(frozen=True)
class AttentionShape:
    """Head counts of an attention, and its type."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: ir.DataType

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


class FusedDialect:
    """Opset 24: one operator per part."""

    name: DialectName = "fused"
    opset = 24
    updates_caches = True
    cache_output = "{name}_out"
    cache_output_length = "cache_length"
    table_axes: tuple[int | str, ...] = ("batch", "sequence")
    rotates_in_one = True
    attends_with_one_row = True
    heads_of_one_product = False

    def rms_norm(self, g: GraphAuthor, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
        """One RMSNormalization."""
        return g.op.RMSNormalization(x, scale, axis=-1, epsilon=epsilon, _outputs=["normed"])

    def norm_heads(self, g: GraphAuthor, x: ir.Value, scales: ir.Value, epsilon: float, head_dim: int) -> ir.Value:
        """One RMSNormalization, whose own scale is the same for all heads, and one Mul."""
        return g.op.Mul(self.rms_norm(g, x, g.constant([1.0] * head_dim, ir.DataType.FLOAT), epsilon), scales)

    def table_rows(self, g: GraphAuthor, table: ir.Value, rows: ir.Value) -> ir.Value:
        """(B,S,head_dim/2) -> (B,R,head_dim/2)."""
        return gather_rows(g, table, rows)

    def rotate(self, g: GraphAuthor, x: ir.Value, rotary: Rotary) -> ir.Value:
        """One RotaryEmbedding."""
        return g.op.RotaryEmbedding(x, rotary.cos, rotary.sin)

    def mask(
        self,
        g: GraphAuthor,
        row_index: ir.Value,
        keys: ir.Value,
        write_index: ir.Value,
        rows: ir.Value,
        window: int | None,
    ) -> ir.Value:
        """kv_index <= row_index: rows written in this step are already in the cache."""
        return _visible(g, _count_along(g, keys, 2), _as_column(g, row_index), window, "mask")

    def update_cache(
        self, g: GraphAuthor, cache: ir.Value, new: ir.Value, write_index: ir.Value, read: Read
    ) -> tuple[ir.Value, ir.Value]:
        """One TensorScatter: the updated cache is both attended to and the output."""
        updated = g.op.TensorScatter(cache, new, write_index, axis=2, mode="linear")
        return read(updated), updated

    def attend(
        self, g: GraphAuthor, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, shape: AttentionShape
    ) -> ir.Value:
        """One Attention."""
        return g.op.Attention(q, k, v, mask) if mask is not None else g.op.Attention(q, k, v)


class PrimitiveDialect:
    """Opset 20: for parsers without the LLM operators."""

    name: DialectName = "primitive"
    opset = 20
    updates_caches = False
    cache_output = "{name}_rows"
    cache_output_length = "sequence"
    # With an axis for the heads. If the graph adds that axis, TensorRT-RTX fuses this into the first layer's attention,
    # and every later layer copies its caches.
    table_axes: tuple[int | str, ...] = ("batch", 1, "sequence")
    rotates_in_one = False
    # A query of one row would make TensorRT-RTX copy the layer's caches.
    attends_with_one_row = False
    # TensorRT-RTX joins caches and new rows inside its attention kernel only if these are parts of one product, with
    # nothing but a rotation behind it; else it writes copies of the layer's caches first.
    heads_of_one_product = True

    def rms_norm(self, g: GraphAuthor, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
        """Square, mean, square root, divide, scale."""
        mean = g.op.ReduceMean(g.op.Mul(x, x), g.constant([-1], ir.DataType.INT64), keepdims=1)
        root = g.op.Sqrt(g.op.Add(mean, g.constant(epsilon, ir.DataType.FLOAT)))
        return g.op.Mul(g.op.Div(x, root), scale, _outputs=["normed"])

    def norm_heads(self, g: GraphAuthor, x: ir.Value, scales: ir.Value, epsilon: float, head_dim: int) -> ir.Value:
        """As `rms_norm`, whose scale is broadcast."""
        return self.rms_norm(g, x, scales, epsilon)

    def table_rows(self, g: GraphAuthor, table: ir.Value, rows: ir.Value) -> ir.Value:
        """(B,1,S,head_dim/2) -> (B,1,R,head_dim/2)."""
        picked = gather_rows(g, g.op.Transpose(table, perm=[0, 2, 1, 3]), rows)
        return g.op.Transpose(picked, perm=[0, 2, 1, 3])

    def rotate(self, g: GraphAuthor, x: ir.Value, rotary: Rotary) -> ir.Value:
        """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of every head."""
        a, b = g.split(x, ["first_half", "second_half"])
        first = g.op.Sub(g.op.Mul(a, rotary.cos), g.op.Mul(b, rotary.sin))
        second = g.op.Add(g.op.Mul(b, rotary.cos), g.op.Mul(a, rotary.sin))
        return g.op.Concat(first, second, axis=-1)

    def mask(
        self,
        g: GraphAuthor,
        row_index: ir.Value,
        keys: ir.Value,
        write_index: ir.Value,
        rows: ir.Value,
        window: int | None,
    ) -> ir.Value:
        """The same condition for cached keys (kv_index < write_index) and for the new ones, which follow them."""
        column = _as_column(g, row_index)
        index = _count_along(g, keys, 2)
        start = g.op.Unsqueeze(write_index, g.constant([1, 2, 3], ir.DataType.INT64))  # (B,1,1,1)
        cached = g.op.And(g.op.Less(index, start), _visible(g, index, column, window))
        new = _visible(g, g.op.Add(_count_along(g, rows, 1), start), column, window)
        return g.op.Concat(cached, new, axis=-1, _outputs=["mask"])

    def update_cache(
        self, g: GraphAuthor, cache: ir.Value, new: ir.Value, write_index: ir.Value, read: Read
    ) -> tuple[ir.Value, ir.Value]:
        """Attend to the unchanged cache and the new rows after it; only the rows are an output."""
        return g.op.Concat(read(cache), read(new), axis=2), new

    def attend(
        self, g: GraphAuthor, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, shape: AttentionShape
    ) -> ir.Value:
        """MatMul, mask, Softmax, MatMul.

        Query heads that share keys are folded into rows for ONNX Runtime, which reads each key once. For engines the
        heads of a group get an axis of their own, outside that of the key heads: with any other order of the axes
        TensorRT-RTX copies the layer's caches at every step. The results are brought in order by row, as the projection
        behind them takes them: otherwise it is a kernel by itself, before which a weight in fp8 is unpacked.
        """
        scaled = g.op.Mul(q, g.constant(shape.head_dim**-0.5, shape.dtype))
        bias = None if mask is None else _bias(g, mask, shape.dtype)
        if shape.group > 1 and shape.dtype != ir.DataType.FLOAT:
            return self._attend_in_groups(g, scaled, (k, v), bias, shape)
        scores = g.op.MatMul(_fold(g, scaled, shape), g.op.Transpose(k, perm=[0, 1, 3, 2]))
        if bias is not None:
            scores = g.op.Add(scores, bias if shape.group == 1 else _repeat_rows(g, bias, shape.group))
        return _unfold(g, g.op.MatMul(g.op.Softmax(scores, axis=-1), v), shape)

    def _attend_in_groups(
        self,
        g: GraphAuthor,
        q: ir.Value,
        keys_values: tuple[ir.Value, ir.Value],
        bias: ir.Value | None,
        shape: AttentionShape,
    ) -> ir.Value:
        """q (B,H,S,d) as (B,group,H_kv,S,d); keys and values (B,1,H_kv,N,d)."""
        axis = g.constant([1], ir.DataType.INT64)
        by_key = g.op.Reshape(q, g.constant([0, shape.kv_heads, shape.group, -1, shape.head_dim], ir.DataType.INT64))
        grouped = g.op.Transpose(by_key, perm=[0, 2, 1, 3, 4])
        keys, values = (g.op.Unsqueeze(each, axis) for each in keys_values)
        scores = g.op.MatMul(grouped, g.op.Transpose(keys, perm=[0, 1, 2, 4, 3]))
        if bias is not None:
            scores = g.op.Add(scores, g.op.Unsqueeze(bias, axis))
        y = g.op.MatMul(g.op.Softmax(scores, axis=-1), values)
        rows = g.constant([0, 0, shape.heads, shape.head_dim], ir.DataType.INT64)
        by_row = g.op.Reshape(g.op.Transpose(y, perm=[0, 3, 2, 1, 4]), rows)
        return g.op.Transpose(by_row, perm=[0, 2, 1, 3])


DIALECTS: dict[DialectName, Dialect] = {"fused": FusedDialect(), "primitive": PrimitiveDialect()}


def gather_rows(g: GraphAuthor, x: ir.Value, rows: ir.Value) -> ir.Value:
    """x (B,S,...) at rows (B,R) -> (B,R,...)."""
    return g.op.GatherND(x, g.op.Unsqueeze(rows, g.constant([2], ir.DataType.INT64)), batch_dims=1)


def _count_along(g: GraphAuthor, x: ir.Value, axis: int) -> ir.Value:
    """0, 1, 2, ... up to the length of `x` along `axis`, which stays symbolic."""
    length = g.op.Squeeze(g.op.Shape(x, start=axis, end=axis + 1))
    zero, one = g.constant(0, ir.DataType.INT64), g.constant(1, ir.DataType.INT64)
    return g.op.Range(zero, length, one, _outputs=["kv_index"])


def _visible(g: GraphAuthor, index: ir.Value, column: ir.Value, window: int | None, name: str = "seen") -> ir.Value:
    """index <= column, and, with a window, index > column - window."""
    if window is None:
        return g.op.LessOrEqual(index, column, _outputs=[name])
    behind = g.op.Sub(column, g.constant(window, ir.DataType.INT64))
    return g.op.And(g.op.LessOrEqual(index, column), g.op.Greater(index, behind), _outputs=[name])


def _as_column(g: GraphAuthor, row_index: ir.Value) -> ir.Value:
    """(B,S) -> (B,1,S,1)."""
    return g.op.Unsqueeze(row_index, g.constant([1, 3], ir.DataType.INT64))


def _bias(g: GraphAuthor, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A mask as a term of the scores. fp16 cannot hold -1e30; scores that are not masked are never below -1e4."""
    lowest = -1e4 if dtype == ir.DataType.FLOAT16 else -1e30
    return g.op.Where(mask, g.constant(0.0, dtype), g.constant(lowest, dtype))


def _fold(g: GraphAuthor, q: ir.Value, shape: AttentionShape) -> ir.Value:
    """(B,H,S,d) -> (B,H_kv,group*S,d)."""
    if shape.group == 1:
        return q
    return g.op.Reshape(q, g.constant([0, shape.kv_heads, -1, shape.head_dim], ir.DataType.INT64))


def _unfold(g: GraphAuthor, y: ir.Value, shape: AttentionShape) -> ir.Value:
    """(B,H_kv,group*S,d) -> (B,H,S,d)."""
    if shape.group == 1:
        return y
    return g.op.Reshape(y, g.constant([0, shape.heads, -1, shape.head_dim], ir.DataType.INT64))


def _repeat_rows(g: GraphAuthor, bias: ir.Value, group: int) -> ir.Value:
    """(B,1,S,keys) -> (B,1,group*S,keys), one copy per query head of a group."""
    return g.op.Concat(*[bias] * group, axis=2)
