"""The three decoder graphs: trunk (layers below the tap), RPN, and tail (layers above, to the logits)."""

from __future__ import annotations

import onnx_ir as ir

from sdrpn.bundle.cache_codes import RowCodes
from sdrpn.export.decoder import FLOAT, INT64, DecoderAuthor, cast, layer_weights, row_of
from sdrpn.export.dialects import Dialect
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable, matmul, norm
from sdrpn.method.spec import ModelSpec

__all__ = [
    "head_weights",
    "rpn_graph",
    "rpn_weights",
    "tail_graph",
    "tail_weights",
    "trunk_graph",
    "trunk_weights",
]


def trunk_weights(spec: ModelSpec) -> list[Weight]:
    """Layers 0..K-1."""
    return [w for i in range(spec.tap_layer) for w in layer_weights(spec.llm, f"llm.layers.{i}")]


def tail_weights(spec: ModelSpec) -> list[Weight]:
    """Layers K..L-1 and the final norm; the head is a separate group."""
    llm = spec.llm
    layers = [w for i in range(spec.tap_layer, llm.layers) for w in layer_weights(llm, f"llm.layers.{i}")]
    final = norm("llm.norm.weight", "llm.norm.weight", (llm.width,))
    return [*layers, final]


def head_weights(spec: ModelSpec) -> list[Weight]:
    """From the last hidden state to logits."""
    return [matmul("llm.head.weight", ["llm.head.weight"], spec.llm.width, spec.llm.vocabulary)]


def rpn_weights(spec: ModelSpec) -> list[Weight]:
    """T-1 whole layers, the norm, and the last layer's norm, query and key."""
    assert spec.rpn is not None
    llm, last = spec.llm, f"rpn.layers.{spec.rpn.layers - 1}"
    query, key = f"{last}.attention.q.weight", f"{last}.attention.k.weight"
    return [
        *(w for i in range(spec.rpn.layers - 1) for w in layer_weights(llm, f"rpn.layers.{i}")),
        norm("rpn.norm.weight", "rpn.norm.weight", (llm.width,)),
        norm(f"{last}.input_norm.weight", f"{last}.input_norm.weight", (llm.width,)),
        matmul(query, [query], llm.width, llm.heads * llm.head_dim),
        matmul(key, [key], llm.width, llm.kv_heads * llm.head_dim),
    ]


def trunk_graph(
    spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable, codes: RowCodes | None = None
) -> GraphAuthor:
    """inputs_embeds (B,S,D) -> tap (B,S,D): the raw residual stream after layer K-1; `codes`: of the caches."""
    g = GraphAuthor("trunk", dialect.opset, table)
    hidden = g.input(Declared("inputs_embeds", FLOAT, ("batch", "sequence", spec.llm.width), "hidden"))
    author = DecoderAuthor.open(g, dialect, spec.llm, dtype, codes)
    for index in range(spec.tap_layer):
        hidden = author.layer(hidden, f"llm.layers.{index}", index)
    g.output(hidden, Declared("tap", FLOAT, ("batch", "sequence", spec.llm.width), "tap"))
    return g


def tail_graph(
    spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable, codes: RowCodes | None = None
) -> GraphAuthor:
    """tap (B,S,D) -> logits (B,V) fp32 of the row at last_index; `codes`: of the caches."""
    g, hidden, author, last_index = _above_the_tap("tail", spec, dialect, dtype, table, codes)
    layers = range(spec.tap_layer, spec.llm.layers)
    for index in layers:
        # After the last layer's keys and values, only the query row is needed.
        only_row = last_index if index == layers[-1] else None
        hidden = author.layer(hidden, f"llm.layers.{index}", index, only_row)
    logits = author.project(author.norm(hidden, "llm.norm.weight"), "llm.head.weight")  # (B,1,V)
    squeezed = g.op.Squeeze(cast(g, logits, FLOAT), g.constant([1], INT64))
    g.output(squeezed, Declared("logits", FLOAT, ("batch", spec.llm.vocabulary), "logits"))
    return g


def rpn_graph(spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
    """tap (B,S,D) -> scores (B,H,S_max) fp32 of the row at last_index against every cached position.

    Two RMSNorms follow each other (the RPN's norm, the last layer's input norm); neither query nor key of the
    last layer is rotated. If the cache is read only, the scores against new rows are a separate output.
    """
    assert spec.rpn is not None
    g, hidden, author, last_index = _above_the_tap("rpn", spec, dialect, dtype, table)
    for index in range(spec.rpn.layers - 1):
        hidden = author.layer(hidden, f"rpn.layers.{index}", index)
    last = f"rpn.layers.{spec.rpn.layers - 1}"
    with g.scope(last):
        normed = author.norm(author.norm(hidden, "rpn.norm.weight"), f"{last}.input_norm.weight")
        key = author.split_heads(author.project(normed, f"{last}.attention.k.weight"), spec.llm.kv_heads)
        query = author.project(row_of(g, normed, last_index), f"{last}.attention.q.weight")
    cache = author.declare_cache("score_key_cache")
    attended = author.store(cache, key)
    scores = Declared("scores", FLOAT, ("batch", spec.llm.heads, "cache_length"), "scores")
    new_scores = Declared("new_scores", FLOAT, ("batch", spec.llm.heads, "sequence"), "new_scores")
    if dialect.updates_caches:
        g.output(_scores(author, query, attended), scores)
    else:
        g.output(_scores(author, query, cache), scores)
        g.output(_scores(author, query, key), new_scores)
    return g


def _above_the_tap(
    name: str,
    spec: ModelSpec,
    dialect: Dialect,
    dtype: ir.DataType,
    table: WeightTable,
    codes: RowCodes | None = None,
) -> tuple[GraphAuthor, ir.Value, DecoderAuthor, ir.Value]:
    g = GraphAuthor(name, dialect.opset, table)
    tap = g.input(Declared("tap", FLOAT, ("batch", "sequence", spec.llm.width), "tap"))
    author = DecoderAuthor.open(g, dialect, spec.llm, dtype, codes)
    return g, tap, author, g.input(Declared("last_index", INT64, ("batch",), "last_index"))


def _scores(author: DecoderAuthor, query: ir.Value, keys: ir.Value) -> ir.Value:
    """query (B,1,H*d) . keys (B,H_kv,N,d) / sqrt(d) -> (B,H,N)."""
    g, shape = author.g, author.attention_shape
    folded = g.op.Reshape(query, g.constant([0, shape.kv_heads, shape.group, shape.head_dim], INT64))
    scaled = g.op.Mul(folded, g.constant(shape.head_dim**-0.5, author.dtype))
    product = g.op.MatMul(scaled, g.op.Transpose(keys, perm=[0, 1, 3, 2]))  # (B,H_kv,group,N)
    merged = g.op.Reshape(product, g.constant([0, shape.heads, -1], INT64))
    return cast(g, merged, FLOAT)
