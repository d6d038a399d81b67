"""A vision graph for ONNX Runtime on a CPU, with its operator MultiHeadAttention.

Made from the graph of the dialect `fused`; inputs and outputs are the same. The standard operator keeps the scores of
all heads and patches at once (4.4 GB at 8,192 patches), this one a block of them. It takes queries, keys and values by
row, which saves their transposition, and of a window which of its slots hold a patch. Where a product is split in two,
as in the MLPs of Qwen2.5-VL, both parts become products of their own, which saves copying them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["multi_head_graph", "split_products", "use_multi_head"]

_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class _Attention:
    """One attention, as the towers write it."""

    packed: ir.Value  # (B,N,3*C)
    cos: ir.Value
    sin: ir.Value
    result: ir.Value  # (B,N,C)
    heads: int
    width: int  # C
    valid: ir.Value | None  # (B,N) of bool: whether there is a patch; None: there are no windows


def multi_head_graph(path: Path) -> bytes | None:
    """The graph at `path` with attentions and products replaced; weights stay in their files. None: none is there."""
    model = ir.load(path)
    if not use_multi_head(model):
        return None
    split_products(model)
    return bytes(ir.to_proto(model).SerializeToString())


def use_multi_head(model: ir.Model) -> bool:
    """Replace these attentions; weights stay in their files. Returns whether there was one."""
    found = [attention for node in model.graph if (attention := _attention(node)) is not None]
    if not found:
        return False
    slots: dict[ir.Value, ir.Value] = {}
    for attention in found:
        _replace(model.graph, attention, slots)
    model.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    return True


def split_products(model: ir.Model) -> bool:
    """Compute the parts of a product that is split, each by its columns of the matrix; whether there was one.

    The columns are taken when the graph is loaded, and saved graphs hold them alone.
    """
    found = [split for split in model.graph if split.op_type == "Split" and _product_above(split) is not None]
    for split in found:
        _divide(model.graph, split)
    RemoveUnusedNodesPass()(model)
    return bool(found)


def _product_above(split: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """MatMul and Add of a matrix and a bias that are stored as floats, before a Split that alone uses the result."""
    steps = _steps_up(split.inputs[0], "Add", "MatMul")
    if steps is None or len(list(steps[0].outputs[0].uses())) > 1:
        return None
    add, product = steps
    return (product, add) if _is_stored(product.inputs[1]) and _is_stored(add.inputs[1]) else None


def _is_stored(value: ir.Value | None) -> bool:
    """Whether it is a weight, or one in another type."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Cast":
        value = node.inputs[0]
    return value is not None and value.is_initializer()


def _divide(graph: ir.Graph, split: ir.Node) -> None:
    found = _product_above(split)
    assert found is not None
    product, add = found
    count, attributes = len(split.outputs), {name: split.attributes[name] for name in split.attributes}
    columns, biases = (
        ir.Node("", "Split", [stored, *split.inputs[1:]], attributes.values(), num_outputs=count)
        for stored in (product.inputs[1], add.inputs[1])
    )
    nodes = [columns, biases]
    for part, matrix, bias in zip(split.outputs, columns.outputs, biases.outputs, strict=True):
        rows = ir.node("MatMul", [product.inputs[0], matrix])
        shifted = ir.node("Add", [rows.outputs[0], bias])
        nodes += [rows, shifted]
        ir.convenience.replace_all_uses_with(part, shifted.outputs[0])
    graph.insert_before(split, nodes)


def _attention(node: ir.Node) -> _Attention | None:
    """The attention of a node, if it is over rotated heads of one packed projection, everywhere or within windows."""
    if node.op_type != "Attention":
        return None
    valid = None
    if len(node.inputs) > 3:
        mask = _steps_up(node.inputs[3], "Expand", "Where", "Unsqueeze")
        valid = None if mask is None else mask[-1].inputs[0]
        if valid is None or not valid.is_graph_input():
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
    return _Attention(packed, cos, sin, merge.outputs[0], heads[0], widths[1], valid)


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


def _replace(graph: ir.Graph, attention: _Attention, slots: dict[ir.Value, ir.Value]) -> None:
    """Args: slots: `valid` as the operator takes it, by what it is made of"""
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
    there: list[ir.Value | None] = []
    if attention.valid is not None:
        if attention.valid not in slots:
            whole = ir.node("Cast", [attention.valid], {"to": ir.DataType.INT32}, name=f"{name}/slots")
            graph.insert_before(graph[0], whole)
            slots[attention.valid] = whole.outputs[0]
        there = [None, slots[attention.valid]]
    attend = ir.node(
        "MultiHeadAttention",
        [turned[0].outputs[0], turned[1].outputs[0], value, *there],
        {"num_heads": heads},
        domain=_DOMAIN,
        name=f"{name}/attention",
    )
    last = attention.result.producer()
    assert last is not None
    graph.insert_after(last, [apart, *turned, attend])
    ir.convenience.replace_all_uses_with(attention.result, attend.outputs[0], replace_graph_outputs=True)
