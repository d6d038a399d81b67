"""A vision graph for ONNX Runtime on a CPU, with its operator MultiHeadAttention in layers that look everywhere.

Made from the graph of the dialect `fused`; inputs and outputs are the same. The standard operator keeps the scores of
all heads and patches at once (4.4 GB at 8,192 patches), this one a block of them. It takes queries, keys and values by
row, which saves their transposition. Layers with a mask, which look within windows, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["multi_head_graph", "use_multi_head"]

_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class _Attention:
    """One attention without a mask, as the towers write it."""

    packed: ir.Value  # (B,N,3*C)
    cos: ir.Value
    sin: ir.Value
    result: ir.Value  # (B,N,C)
    heads: int
    width: int  # C


def multi_head_graph(path: Path) -> bytes | None:
    """The graph at `path` with these attentions replaced; weights stay in their files. None: it has none of them."""
    model = ir.load(path)
    return bytes(ir.to_proto(model).SerializeToString()) if use_multi_head(model) else None


def use_multi_head(model: ir.Model) -> bool:
    """Replace these attentions; weights stay in their files. Returns whether there was one."""
    found = [attention for node in model.graph if (attention := _attention(node)) is not None]
    if not found:
        return False
    for attention in found:
        _replace(model.graph, attention)
    model.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    return True


def _attention(node: ir.Node) -> _Attention | None:
    """The attention of a node, if it is one without a mask over rotated heads of one packed projection."""
    if node.op_type != "Attention" or len(node.inputs) != 3:
        return None
    way = _steps_up(node.inputs[0], "Split", "RotaryEmbedding", "Transpose", "Reshape", "Split")
    values = _steps_up(node.inputs[2], "Transpose", "Reshape", "Split")
    if way is None or values is None or way[-1] is not values[-1]:
        return None
    apart, rotary, split = way[0], way[1], way[-1]
    heads, widths = _sizes_of(apart), _sizes_of(split)
    merge = _only_user(_only_user(node))  # Transpose, Reshape
    cos, sin, packed = rotary.inputs[1], rotary.inputs[2], split.inputs[0]
    assert cos is not None
    assert sin is not None
    assert packed is not None
    return _Attention(packed, cos, sin, merge.outputs[0], heads[0], widths[1])


def _steps_up(value: ir.Value | None, *operators: str) -> list[ir.Node] | None:
    """The nodes that make a value, from the last up, if they are of these operators."""
    nodes: list[ir.Node] = []
    for operator in operators:
        node = None if value is None else value.producer()
        if node is None or node.op_type != operator:
            return None
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def _sizes_of(split: ir.Node) -> list[int]:
    sizes = ir.convenience.get_const_tensor(split.inputs[1]) if split.inputs[1] is not None else None
    assert sizes is not None
    return [int(size) for size in sizes.numpy()]


def _only_user(node: ir.Node) -> ir.Node:
    ((user, _),) = node.outputs[0].uses()
    return user


def _replace(graph: ir.Graph, attention: _Attention) -> None:
    name, heads = attention.result.name, attention.heads
    sizes = ir.Value(
        name=f"{name}/thirds",
        const_value=ir.tensor([attention.width] * 3, dtype=ir.DataType.INT64, name=f"{name}/thirds"),
    )
    graph.register_initializer(sizes)
    apart = ir.node("Split", [attention.packed, sizes], {"axis": -1}, num_outputs=3, name=f"{name}/apart")
    query, key, value = apart.outputs
    turned = [
        ir.node(
            "RotaryEmbedding", [rows, attention.cos, attention.sin], {"num_heads": heads}, name=f"{name}/turned_{what}"
        )
        for what, rows in (("query", query), ("key", key))
    ]
    attend = ir.node(
        "MultiHeadAttention",
        [turned[0].outputs[0], turned[1].outputs[0], value],
        {"num_heads": heads},
        domain=_DOMAIN,
        name=f"{name}/attention",
    )
    last = attention.result.producer()
    assert last is not None
    graph.insert_after(last, [apart, *turned, attend])
    ir.convenience.replace_all_uses_with(attention.result, attend.outputs[0], replace_graph_outputs=True)
