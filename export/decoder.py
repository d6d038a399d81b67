"""Decoder layers in ONNX, shared by trunk, gate, RPN and tail.

Residual stream and norms are fp32, matmuls and caches are in the graph's precision. QKV and gate/up are
one packed MatMul each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.bundle.cache_codes import LEAST_SCALE, RowCodes
from sdrpn.bundle.graphs import RoleName
from sdrpn.export.dialects import AttentionShape, Dialect, Read, Rotary
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, matmul, norm, onnx_type, plain
from sdrpn.method.spec import LlmSpec

__all__ = ["DecoderAuthor", "last_layer_weights", "layer_weights", "projection_weights"]

Array = npt.NDArray[np.generic]
INT64 = ir.DataType.INT64
FLOAT = ir.DataType.FLOAT


def layer_weights(llm: LlmSpec, prefix: str) -> list[Weight]:
    """The weights of one decoder layer, named after `prefix` (`llm.layers.3`)."""
    attention = f"{prefix}.attention"
    return [
        norm(f"{prefix}.input_norm.weight", f"{prefix}.input_norm.weight", (llm.width,)),
        *projection_weights(llm, attention, "qkv", qkv_width(llm)),
        *([_joint_norms(llm, attention)] if llm.qk_norm else []),
        *_output_weights(llm, prefix),
    ]


def last_layer_weights(llm: LlmSpec, prefix: str) -> list[Weight]:
    """The same for `DecoderAuthor.last_layer`, with queries apart from keys and values."""
    attention = f"{prefix}.attention"
    norms = [f"{attention}.{part}_norm.weight" for part in "qk"] if llm.qk_norm else []
    return [
        norm(f"{prefix}.input_norm.weight", f"{prefix}.input_norm.weight", (llm.width,)),
        *projection_weights(llm, attention, "q", llm.heads * llm.head_dim),
        *projection_weights(llm, attention, "kv", 2 * llm.kv_heads * llm.head_dim),
        *(norm(name, name, (llm.head_dim,)) for name in norms),
        *_output_weights(llm, prefix),
    ]


def _output_weights(llm: LlmSpec, prefix: str) -> list[Weight]:
    """Everything behind the attention."""
    width, mlp, attention = llm.width, llm.mlp_width, f"{prefix}.attention"
    return [
        matmul(f"{attention}.o.weight", [f"{attention}.o.weight"], llm.heads * llm.head_dim, width),
        norm(f"{prefix}.post_norm.weight", f"{prefix}.post_norm.weight", (width,)),
        matmul(f"{prefix}.mlp.gate_up.weight", [f"{prefix}.mlp.{p}.weight" for p in ("gate", "up")], width, 2 * mlp),
        matmul(f"{prefix}.mlp.down.weight", [f"{prefix}.mlp.down.weight"], mlp, width),
    ]


def projection_weights(llm: LlmSpec, attention: str, parts: str, outputs: int) -> list[Weight]:
    """The packed projection of some of q, k and v, and its bias where the model has one."""
    name = f"{attention}.{parts}"
    weight = matmul(f"{name}.weight", [f"{attention}.{part}.weight" for part in parts], llm.width, outputs)
    if not llm.attention_bias:
        return [weight]
    return [weight, plain(f"{name}.bias", [f"{attention}.{part}.bias" for part in parts], (outputs,))]


def _joint_norms(llm: LlmSpec, attention: str) -> Weight:
    """The scales of the query and key norms for every head (H+H_kv,head_dim), which are normalised together."""

    def tiled(arrays: Sequence[Array]) -> Array:
        query, key = arrays
        return np.concatenate([np.tile(query, (llm.heads, 1)), np.tile(key, (llm.kv_heads, 1))])

    sources = tuple(f"{attention}.{part}_norm.weight" for part in "qk")
    return Weight(f"{attention}.qk_norm.weight", (llm.heads + llm.kv_heads, llm.head_dim), "norm", sources, tiled)


def qkv_width(llm: LlmSpec) -> int:
    """Columns of the packed query, key and value projection."""
    return (llm.heads + 2 * llm.kv_heads) * llm.head_dim


@dataclass
class DecoderAuthor:
    """Writes decoder layers into `g`; declares their caches as inputs and outputs."""

    g: GraphAuthor
    dialect: Dialect
    llm: LlmSpec
    dtype: ir.DataType
    rotary: Rotary
    row_index: ir.Value
    write_index: ir.Value
    codes: RowCodes | None = None  # form of the layers' KV cache
    _mask: ir.Value | None = field(default=None, init=False)

    @classmethod
    def open(
        cls, g: GraphAuthor, dialect: Dialect, llm: LlmSpec, dtype: ir.DataType, codes: RowCodes | None = None
    ) -> DecoderAuthor:
        """Declare the inputs that every decoder graph has.

        row_index (B,S): the cache row of each new row, which decides what it attends to; write_index (B): the first of
        them; rope_cos and rope_sin (B,S,head_dim/2): rotary tables, in the type in which heads are rotated. If a graph
        casts them, TensorRT-RTX copies the caches of every layer, in the dialect primitive.
        """
        row_index = g.input(Declared("row_index", INT64, ("batch", "sequence"), "row_index"))
        write_index = g.input(Declared("write_index", INT64, ("batch",), "write_index"))
        axes = (*dialect.table_axes, llm.head_dim // 2)
        rotary = Rotary(
            g.input(Declared("rope_cos", dtype, axes, "rope_cos")),
            g.input(Declared("rope_sin", dtype, axes, "rope_sin")),
        )
        return cls(g, dialect, llm, dtype, rotary, row_index, write_index, codes)

    @property
    def attention_shape(self) -> AttentionShape:
        """Heads of the LLM's attention."""
        return AttentionShape(self.llm.heads, self.llm.kv_heads, self.llm.head_dim, self.dtype)

    def norm(self, x: ir.Value, scale: str) -> ir.Value:
        """RMSNorm in fp32."""
        with self.g.scope(scale.rsplit(".", 2)[-2]):
            return self.dialect.rms_norm(self.g, x, self.g.weight(scale), self.llm.rms_norm_eps)

    def project(self, x: ir.Value, weight: str, *, biased: bool = False) -> ir.Value:
        """x (..., K) @ weight [K,N] in the graph's precision, plus the bias of the same name."""
        name = weight.rsplit(".", 2)[-2]
        product = self.g.product(cast(self.g, x, self.dtype), weight, self.dtype, name)
        if not biased:
            return product
        bias = self.g.weight(f"{weight.removesuffix('weight')}bias", self.dtype)
        return self.g.op.Add(product, bias, _outputs=[f"{name}_biased"])

    def layer(self, x: ir.Value, prefix: str, index: int, only_row: ir.Value | None = None) -> ir.Value:
        """One whole layer, x (B,S,D) fp32 -> (B,S,D), with the caches of layer `index`.

        With `only_row` (B,) the keys and values of all rows are computed, but the output is that row only: (B,1,D).
        """
        with self.g.scope(prefix):
            normed = self.norm(x, f"{prefix}.input_norm.weight")
            q, k, v = self._turned_qkv(normed, prefix)
            keys = self._cached(f"key_cache.{index}", k)
            values = self._cached(f"value_cache.{index}", v)
            mask = self._mask_of(keys[0])
            if only_row is not None and self.dialect.attends_with_one_row:
                q = self._head_row(q, only_row)
                mask = self._make_mask(keys[0], row_of(self.g, self.row_index, only_row))
            y = self._merge_heads(self.dialect.attend(self.g, q, keys[1], values[1], mask, self.attention_shape))
            if only_row is not None:
                x = row_of(self.g, x, only_row)
                y = y if self.dialect.attends_with_one_row else row_of(self.g, y, only_row)
            x = self.g.op.Add(x, cast(self.g, self.project(y, f"{prefix}.attention.o.weight"), FLOAT))
            return self._mlp(x, prefix)

    def last_layer(self, x: ir.Value, prefix: str, index: int, row: ir.Value) -> ir.Value:
        """One whole layer of which only the output of `row` (B,) is used: x (B,S,D) fp32 -> (B,1,D).

        Keys and values are those of all rows. The query is that row's alone, where the dialect attends with one row.
        """
        llm, g, attention = self.llm, self.g, f"{prefix}.attention"
        with g.scope(prefix):
            normed = self.norm(x, f"{prefix}.input_norm.weight")
            scales = [g.weight(f"{attention}.{part}_norm.weight") if llm.qk_norm else None for part in "qk"]
            packed = self.project(normed, f"{attention}.kv.weight", biased=llm.attention_bias)
            key, value = self._rows_of(packed, {"k": llm.kv_heads, "v": llm.kv_heads})
            keys = self._cached(f"key_cache.{index}", self._by_head(key, scales[1], self.rotary))
            values = self._cached(f"value_cache.{index}", _by_head(g, value))
            asking, rotary, rows = normed, self.rotary, self.row_index
            if self.dialect.attends_with_one_row:
                asking, rows = row_of(g, normed, row), row_of(g, self.row_index, row)
                rotary = self.rotary_at(g.op.Unsqueeze(row, g.constant([1], INT64)))
            query = self.project(asking, f"{attention}.q.weight", biased=llm.attention_bias)
            query = self.heads(query, llm.heads, scales[0], rotary)
            mask = self._make_mask(keys[0], rows) if self.dialect.attends_with_one_row else self._mask_of(keys[0])
            y = self._merge_heads(self.dialect.attend(g, query, keys[1], values[1], mask, self.attention_shape))
            y = y if self.dialect.attends_with_one_row else row_of(g, y, row)
            x = g.op.Add(row_of(g, x, row), cast(g, self.project(y, f"{attention}.o.weight"), FLOAT))
            return self._mlp(x, prefix)

    def _mlp(self, x: ir.Value, prefix: str) -> ir.Value:
        """down(silu(gate) * up), added to the residual stream."""
        op = self.g.op
        gate_up = self.project(self.norm(x, f"{prefix}.post_norm.weight"), f"{prefix}.mlp.gate_up.weight")
        gate, up = self._gate_and_up(gate_up)
        gated = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up, _outputs=["gated"])
        down = self.project(gated, f"{prefix}.mlp.down.weight")
        return op.Add(x, cast(self.g, down, FLOAT), _outputs=["hidden"])

    def _gate_and_up(self, packed: ir.Value) -> Sequence[ir.Value]:
        """(B,S,2*mlp_width) -> two of (B,S,mlp_width).

        For engines, which are fp16, split along a separate axis. If the last axis is split, TensorRT-RTX rearranges the
        packed weight for prefills: the engine then holds it twice, since decode steps use it as it is.
        """
        if self.dtype == FLOAT:
            return self.g.split(packed, ["gate", "up"])
        pair = self.g.op.Reshape(packed, self.g.constant([0, 0, 2, self.llm.mlp_width], INT64))
        axis = self.g.constant([2], INT64)
        halves = self.g.split(pair, ["gate_only", "up_only"], axis=2)
        return [
            self.g.op.Squeeze(half, axis, _outputs=[name]) for half, name in zip(halves, ("gate", "up"), strict=True)
        ]

    def _turned_qkv(self, normed: ir.Value, prefix: str) -> list[ir.Value]:
        """q (B,H,S,head_dim), k and v (B,H_kv,S,head_dim).

        q and k are rotated together: TensorRT-RTX would use one kernel for each, and ONNX Runtime one for each operator
        of the dialect primitive. A single operator on floats, which ONNX Runtime computes, rotates them separately:
        splitting them afterwards copies both, which took 1 to 3 % of a prefill.
        """
        llm, g = self.llm, self.g
        packed = self.project(normed, f"{prefix}.attention.qkv.weight", biased=llm.attention_bias)
        scales = f"{prefix}.attention.qk_norm.weight"
        if self.dtype == FLOAT and self.dialect.rotates_in_one:
            q, k, v = self._rows_of(packed, {"q": llm.heads, "k": llm.kv_heads, "v": llm.kv_heads})
            if llm.qk_norm:
                first, last = (g.op.Gather(g.weight(scales), g.constant(row, INT64), axis=0) for row in (0, llm.heads))
                q, k = self._norm_heads(q, first), self._norm_heads(k, last)
            turned = [self.dialect.rotate(g, _by_head(g, part), self.rotary) for part in (q, k)]
            return [*turned, _by_head(g, v)]
        qk, v = self._rows_of(packed, {"qk": llm.heads + llm.kv_heads, "v": llm.kv_heads})
        if llm.qk_norm:
            own = self.dialect.norm_heads(g, cast(g, qk, FLOAT), g.weight(scales), llm.rms_norm_eps, llm.head_dim)
            qk = cast(g, own, self.dtype)
            if self.dtype != FLOAT and self.dialect.heads_of_one_product:
                qk, v = self._of_one_product(qk, v)
        together = self.dialect.rotate(g, _by_head(g, qk), self.rotary)
        return [*g.split(together, ["q", "k"], [llm.heads, llm.kv_heads], axis=1), _by_head(g, v)]

    def _of_one_product(self, qk: ir.Value, v: ir.Value) -> Sequence[ir.Value]:
        """The same heads (B,S,heads,head_dim), multiplied with the identity: see `Dialect.heads_of_one_product`."""
        llm, g = self.llm, self.g
        packed = g.op.Concat(qk, v, axis=2)
        product = g.op.MatMul(packed, g.identity(llm.head_dim, self.dtype), _outputs=["packed_heads"])
        return g.split(product, ["qk", "v"], [llm.heads + llm.kv_heads, llm.kv_heads], axis=2)

    def _norm_heads(self, x: ir.Value, scale: ir.Value) -> ir.Value:
        """RMSNorm over the channels of every head, x (B,S,heads,head_dim), in fp32; one scale (head_dim) for all."""
        normed = self.dialect.rms_norm(self.g, cast(self.g, x, FLOAT), scale, self.llm.rms_norm_eps)
        return cast(self.g, normed, self.dtype)

    def _rows_of(self, packed: ir.Value, heads: dict[str, int]) -> list[ir.Value]:
        """(B,S,heads*head_dim) -> (B,S,heads,head_dim) of each name."""
        names, counts, width = list(heads), list(heads.values()), self.llm.head_dim
        if self.dtype == FLOAT:
            parts = self.g.split(packed, names, [count * width for count in counts])
            return [self._apart(part, count) for part, count in zip(parts, counts, strict=True)]
        return self.g.split(self._apart(packed, sum(counts)), names, counts, axis=2)  # as in `_gate_and_up`

    def _apart(self, x: ir.Value, heads: int) -> ir.Value:
        """(B,S,heads*head_dim) -> (B,S,heads,head_dim)."""
        return self.g.op.Reshape(x, self.g.constant([0, 0, heads, self.llm.head_dim], INT64))

    def heads(self, x: ir.Value, heads: int, scale: ir.Value | None, rotary: Rotary | None) -> ir.Value:
        """A projection (B,S,heads*head_dim) -> (B,heads,S,head_dim): normalised by `scale`, turned by `rotary`."""
        return self._by_head(self._apart(x, heads), scale, rotary)

    def _by_head(self, rows: ir.Value, scale: ir.Value | None, rotary: Rotary | None) -> ir.Value:
        """The same of (B,S,heads,head_dim)."""
        if scale is not None:
            rows = self._norm_heads(rows, scale)
        by_head = _by_head(self.g, rows)
        return by_head if rotary is None else self.dialect.rotate(self.g, by_head, rotary)

    def rotary_at(self, rows: ir.Value) -> Rotary:
        """The rotary tables of the new rows (B,R) alone."""
        cos, sin = (self.dialect.table_rows(self.g, table, rows) for table in (self.rotary.cos, self.rotary.sin))
        return Rotary(cos, sin)

    def _merge_heads(self, y: ir.Value) -> ir.Value:
        """(B,H,S,head_dim) -> (B,S,H*head_dim)."""
        shape = self.g.constant([0, 0, self.llm.heads * self.llm.head_dim], INT64)
        return self.g.op.Reshape(self.g.op.Transpose(y, perm=[0, 2, 1, 3]), shape)

    def _head_row(self, q: ir.Value, row: ir.Value) -> ir.Value:
        """(B,H,S,head_dim) -> (B,H,1,head_dim)."""
        by_row = self.g.op.Transpose(q, perm=[0, 2, 1, 3])
        return self.g.op.Transpose(row_of(self.g, by_row, row), perm=[0, 2, 1, 3])

    def _cached(self, name: str, new: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Declare a cache and write `new` into it: (the cache input, the tensor to attend to)."""
        if self.codes is not None:
            return self._cached_codes(self.codes, name, new)
        cache = self.declare_cache(name)
        return cache, self.store(cache, new)

    def _cached_codes(self, codes: RowCodes, name: str, new: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The same with a cache for codes and one for scales.

        Attention uses new rows as they are stored, so that results do not depend on how rows are split into runs. The
        scale of QuantizeLinear is a constant 1, which every TensorRT accepts.
        """
        g, one = self.g, self.g.constant(1.0, self.dtype)
        largest = g.op.ReduceMax(g.op.Abs(new), g.constant([-1], INT64), keepdims=1)
        scale = g.op.Div(largest, g.constant(codes.largest, self.dtype))
        scale = g.op.Max(scale, g.constant(LEAST_SCALE, self.dtype), _outputs=["row_scale"])
        dtype = onnx_type(codes.dtype)
        cache = self.declare_cache(name, dtype)
        rows = g.codes(g.op.Div(new, scale), one, dtype)
        numbers = self.store(cache, rows, lambda held: g.op.DequantizeLinear(held, one))
        scale_cache = self._declare_scales(name)
        return scale_cache, g.op.Mul(numbers, self.store(scale_cache, scale))

    def declare_cache(self, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """A cache input (B,H_kv,S_max,head_dim), by default in the graph's type."""
        dims = ("batch", self.llm.kv_heads, "cache_length", self.llm.head_dim)
        return self.g.input(Declared(name, dtype or self.dtype, dims, "cache"))

    def _declare_scales(self, cache: str) -> ir.Value:
        """The scales (B,H_kv,S_max,1) of a cache: for key_cache.3 they are key_scale_cache.3."""
        name, dims = cache.replace("_cache", "_scale_cache"), ("batch", self.llm.kv_heads, "cache_length", 1)
        return self.g.input(Declared(name, self.dtype, dims, "cache_scale", cache))

    def store(self, cache: ir.Value, new: ir.Value, read: Read = lambda held: held) -> ir.Value:
        """Write rows into a declared cache, declare the output, and return the tensor to attend to."""
        attended, output = self.dialect.update_cache(self.g, cache, new, self.write_index, read)
        declared, dialect = self.g.declared(cache), self.dialect
        role: RoleName = declared.role
        if not dialect.updates_caches:
            role = "new_rows" if role == "cache" else "new_scales"
        dims = tuple(dialect.cache_output_length if dim == "cache_length" else dim for dim in declared.dims)
        name = dialect.cache_output.format(name=declared.name)
        self.g.output(output, Declared(name, declared.dtype, dims, role, declared.name))
        return attended

    def _mask_of(self, cache: ir.Value) -> ir.Value:
        """The attention mask, made in the first layer and used by all."""
        if self._mask is None:
            self._mask = self._make_mask(cache, self.row_index)
        return self._mask

    def _make_mask(self, cache: ir.Value, row_index: ir.Value) -> ir.Value:
        return self.dialect.mask(self.g, row_index, cache, self.write_index, self.row_index, self.llm.sliding_window)


def cast(g: GraphAuthor, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A Cast, if the type differs."""
    return x if x.dtype == dtype else g.op.Cast(x, to=int(dtype))


def row_of(g: GraphAuthor, x: ir.Value, row: ir.Value) -> ir.Value:
    """x (B,S,...) at row (B,) -> (B,1,...)."""
    column = g.op.Unsqueeze(row, g.constant([1, 2], INT64))  # (B,1,1): one index of one coordinate
    return g.op.GatherND(x, column, batch_dims=1)


def _by_head(g: GraphAuthor, x: ir.Value) -> ir.Value:
    """(B,S,heads,head_dim) -> (B,heads,S,head_dim)."""
    return g.op.Transpose(x, perm=[0, 2, 1, 3])
