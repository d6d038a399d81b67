"""A decoder graph for ONNX Runtime on a CPU, with attention by its own operator, GroupQueryAttention.

Made from the standard graph of the dialect `fused`, which remains the source; inputs and outputs are the same. Queries
and keys are rotated before the operator, which could only take angles from a table of all rows. It updates the caches
in place and attends to the rows in use only, whatever the length of the caches. It takes rows to be consecutive from
`write_index` on, which holds in the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sdrpn.errors import BadInput

__all__ = ["group_query_graph", "mapped_bytes", "use_group_query"]

_DOMAIN = "com.microsoft"
# Operators between the packed projection and an attention's query, besides the split after the rotation.
_PASSED = ("RotaryEmbedding", "Transpose", "RMSNormalization", "Reshape", "GatherND", "TensorScatter")


@dataclass(frozen=True)
class _Attention:
    """One attention of the standard graph, and its inputs and output."""

    packed: ir.Value  # (B,S,(H+2*H_kv)*head_dim)
    caches: tuple[ir.Value, ir.Value]
    updated: tuple[ir.Value, ir.Value]
    row: ir.Value | None  # index (B,1,1) of the only query that is used; None: all
    result: ir.Value  # (B,S,H*head_dim), or (B,1,H*head_dim)
    heads: int
    kv_heads: int
    head_dim: int
    norms: tuple[ir.Node | None, ir.Node | None]  # of query and key heads


def group_query_graph(path: Path) -> bytes:
    """The graph at `path` with its attentions replaced; weights stay in their files. Raises: as `use_group_query`"""
    model = ir.load(path)
    use_group_query(model, str(path))
    return bytes(ir.to_proto(model).SerializeToString())


def use_group_query(model: ir.Model, name: str) -> None:
    """Replace a graph's attentions; weights stay in their files.

    Args: name: of the graph, for messages
    Raises: BadInput if the graph has no attention of this form
    """
    attentions = (_attention(node) for node in model.graph if node.op_type == "Attention" and len(node.inputs) > 3)
    found = [attention for attention in attentions if attention is not None]
    if not found:
        raise BadInput(f"{name} has no attention with caches as the dialect fused writes it; nothing to replace")
    _replace(model.graph, found)
    model.opset_imports[_DOMAIN] = 1
    RemoveUnusedNodesPass()(model)


def mapped_bytes(path: Path) -> int:
    """Bytes of the weights of a saved graph in the form that kernels use: packed, if there is a packed form.

    Scales that are packed together with their codes are not counted once more.
    """
    graph = onnx.load(path, load_external_data=False).graph
    stored, used = dict[str, int](), dict[str, int]()
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        packed = [value for key, value in entries.items() if key.startswith("prepacked")]
        # kernel|offset;size;...
        sizes = [int(part.split(";")[1]) for value in packed for part in value.split("|")[1:]]
        stored[tensor.name] = int(entries.get("length", 0))
        used[tensor.name] = sum(sizes) if sizes else stored[tensor.name]
    for node in graph.node:
        if node.op_type == "MatMulNBits" and used.get(node.input[1], 0) > stored.get(node.input[1], 0):
            used[node.input[2]] = 0
    return sum(used.values())


def _attention(node: ir.Node) -> _Attention | None:
    """The attention of a node; None for one whose query is projected by itself, as in a gate's last layer.

    That query is one row, and the operator has as many queries as new rows.
    """
    query, (keys, values) = _input(node, 0), (_producer(node, i) for i in (1, 2))
    way = list(_way_up(query))
    picked = [step for step in way if step.op_type == "GatherND"]
    merge = _only_user(_only_user(node.outputs[0]).outputs[0])  # Transpose, Reshape
    caches = _input(keys, 0), _input(values, 0)
    kv_heads, head_dim = (_size(caches[0], axis) for axis in (1, 3))
    split = _producer_of(_input(way[-1], 0))
    if split.op_type != "Split":
        return None
    key_way = list(_way_up(_input(keys, 1)))
    sizes = ir.convenience.get_const_tensor(_input(split, 1))
    assert sizes is not None
    return _Attention(
        packed=_input(split, 0),
        caches=caches,
        updated=(keys.outputs[0], values.outputs[0]),
        row=_input(picked[0], 1) if picked else None,
        result=merge.outputs[0],
        heads=int(sizes.numpy().sum()) // head_dim - 2 * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norms=(_norm_among(way), _norm_among(key_way)),
    )


def _norm_among(way: list[ir.Node]) -> ir.Node | None:
    return next((step for step in way if step.op_type == "RMSNormalization"), None)


def _way_up(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes from a query up to the split of the packed projection, exclusive."""
    node = _producer_of(value)
    while node.op_type in _PASSED or (node.op_type == "Split" and _producer(node, 0).op_type == "RotaryEmbedding"):
        yield node
        node = _producer_of(_input(node, 0))


def _replace(graph: ir.Graph, found: list[_Attention]) -> None:
    inputs = {str(value.name): value for value in graph.inputs}
    start, lengths, total = _extents(graph, inputs["row_index"], inputs["write_index"])
    for attention in found:
        turn, (query, key, value) = _turned(graph, attention, inputs["rope_cos"], inputs["rope_sin"])
        attend = ir.node(
            "GroupQueryAttention",
            [query, key, value, *attention.caches, lengths, total],
            {"num_heads": attention.heads, "kv_num_heads": attention.kv_heads, "do_rotary": 0},
            domain=_DOMAIN,
            num_outputs=3,
            name=f"{attention.result.name}/attention",
        )
        nodes, result = [*turn, attend], attend.outputs[0]
        if attention.row is not None:
            picked = ir.node(
                "GatherND", [result, attention.row], {"batch_dims": 1}, name=f"{attention.result.name}/row"
            )
            nodes, result = [*nodes, picked], picked.outputs[0]
        last = attention.result.producer()
        assert last is not None
        graph.insert_after(last, nodes)
        for old, new in zip((attention.result, *attention.updated), (result, *attend.outputs[1:]), strict=True):
            _take_over(graph, old, new)
    graph.insert_before(graph[0], start)


def _turned(
    graph: ir.Graph, attention: _Attention, cos: ir.Value, sin: ir.Value
) -> tuple[list[ir.Node], tuple[ir.Value, ir.Value, ir.Value]]:
    """Nodes and their results from the packed projection: rotated query and key (B,S,heads*head_dim), and value."""
    name, heads, kv_heads, width = attention.result.name, attention.heads, attention.kv_heads, attention.head_dim
    sizes = _sizes(graph, f"{name}/heads", heads * width, kv_heads * width, kv_heads * width)
    apart = ir.node("Split", [attention.packed, sizes], {"axis": -1}, num_outputs=3, name=f"{name}/apart")
    query, key, value = apart.outputs
    nodes, turned = [apart], list[ir.Value]()
    for what, rows, count, norm in (
        ("query", query, heads, attention.norms[0]),
        ("key", key, kv_heads, attention.norms[1]),
    ):
        normed = [] if norm is None else _normed(graph, f"{name}/{what}", rows, norm, (count, width))
        rows = normed[-1].outputs[0] if normed else rows
        turn = ir.node("RotaryEmbedding", [rows, cos, sin], {"num_heads": count}, name=f"{name}/turned_{what}")
        nodes += [*normed, turn]
        turned.append(turn.outputs[0])
    return nodes, (turned[0], turned[1], value)


def _normed(graph: ir.Graph, name: str, rows: ir.Value, norm: ir.Node, heads: tuple[int, int]) -> list[ir.Node]:
    """Nodes that normalise every head of rows (B,S,heads*head_dim)."""
    count, width = heads
    by_head, by_row = _sizes(graph, f"{name}_by_head", 0, 0, count, width), _sizes(graph, f"{name}_by_row", 0, 0, -1)
    apart = ir.node("Reshape", [rows, by_head], name=f"{name}_apart")
    epsilon = norm.attributes["epsilon"].as_float()
    attributes = {"axis": -1, "epsilon": epsilon}
    normed = ir.node("RMSNormalization", [apart.outputs[0], _input(norm, 1)], attributes, name=f"{name}_normed")
    return [apart, normed, ir.node("Reshape", [normed.outputs[0], by_row], name=f"{name}_together")]


def _sizes(graph: ir.Graph, name: str, *sizes: int) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(sizes, dtype=ir.DataType.INT64, name=name))
    graph.register_initializer(value)
    return value


def _extents(graph: ir.Graph, row_index: ir.Value, write_index: ir.Value) -> tuple[list[ir.Node], ir.Value, ir.Value]:
    """Nodes and their results: rows in use minus one (B), and the most rows in use, both int32."""
    one = ir.Value(name="one", const_value=ir.tensor([1], dtype=ir.DataType.INT64, name="one"))
    graph.register_initializer(one)
    rows = ir.node("Shape", [row_index], {"start": 1, "end": 2})
    end = ir.node("Add", [write_index, rows.outputs[0]])
    last = ir.node("Sub", [end.outputs[0], one])
    lengths = ir.node("Cast", [last.outputs[0]], {"to": ir.DataType.INT32})
    most = ir.node("ReduceMax", [end.outputs[0]], {"keepdims": 0})
    total = ir.node("Cast", [most.outputs[0]], {"to": ir.DataType.INT32})
    nodes = [rows, end, last, lengths, most, total]
    for node, name in zip(nodes, ("rows", "end", "last", "lengths", "most", "total"), strict=True):
        node.outputs[0].name = f"extent.{name}"
    return nodes, lengths.outputs[0], total.outputs[0]


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Replace `old` by `new`, also as an output of the graph."""
    name, new.type, new.shape = old.name, old.type, old.shape
    old.name = f"{name}.standard"
    new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _producer(node: ir.Node, index: int) -> ir.Node:
    return _producer_of(_input(node, index))


def _producer_of(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _only_user(value: ir.Value) -> ir.Node:
    ((node, _),) = value.uses()
    return node


def _size(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size
