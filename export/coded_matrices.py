"""Matrices of an exported graph in codes of fewer bits: what it has in floats in 8, and a head in 4.

In the form in which an export writes them. 8 bits are made from the floats of the bundle, which are the checkpoint's
own but for their rounding; 4 bits from a checkpoint's, or from what the bundle has: floats or codes of 8 bits, which
add less than a hundredth to the error of 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sdrpn.export.quantization import BLOCK_SIZES, Blocks, quantize

__all__ = ["LARGEST_BLOCK", "use_eight_bits", "use_four_bits"]

Array = npt.NDArray[Any]

LARGEST_BLOCK = 32  # a scale for every 32 inputs, as exports have them
_FEWEST_INPUTS = 64  # a smaller matrix is not worth it
_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


@dataclass(frozen=True)
class _Product:
    """A product, and the matrix (K,N) that it takes: as it is stored, after a cast, or decoded from 8 bits."""

    node: ir.Node
    weight: ir.Value  # the stored values or codes
    inputs: int
    type: ir.DataType  # of the floats that the product takes
    read: Callable[[], Array]  # (K,N) in floats


def use_eight_bits(model: ir.Model, names: frozenset[str] | None = None) -> int:
    """Replace the model's float matrices; how many there were.

    Args: names: of weights; None: all that a MatMul takes
    """
    found = [each for each in _products(model.graph, names) if each.weight.dtype != ir.DataType.INT8]
    found = [each for each in found if each.inputs >= _FEWEST_INPUTS and _block(each.inputs, LARGEST_BLOCK) is not None]
    for each in found:
        _replace(model.graph, each, Blocks(8, _block(each.inputs, LARGEST_BLOCK) or LARGEST_BLOCK), each.read)
    RemoveUnusedNodesPass()(model)
    return len({str(each.weight.name) for each in found})


def use_four_bits(model: ir.Model, name: str, block: int, floats: Array | None = None) -> int:
    """Replace a matrix that the model has in floats or in 8 bits; how many there were: one or none.

    Args:
        block: inputs that share a scale, or fewer where that does not divide them
        floats: (N,K), the checkpoint's own; None: what the model has
    """
    found = list(_products(model.graph, frozenset({name})))
    for each in found:
        size = _block(each.inputs, block)
        if size is None:
            return 0
        _replace(model.graph, each, Blocks(4, size), each.read if floats is None else lambda: np.asarray(floats).T)
    RemoveUnusedNodesPass()(model)
    return len({str(each.weight.name) for each in found})


def _products(graph: ir.Graph, names: frozenset[str] | None) -> Iterator[_Product]:
    for node in graph:
        if node.op_type != "MatMul" or node.inputs[1] is None:
            continue
        taken = node.inputs[1]
        maker = taken.producer()
        weight = taken if maker is None else maker.inputs[0]
        if weight is None or weight.const_value is None or (names is not None and str(weight.name) not in names):
            continue
        product = _coded(node, maker, weight) if _is_decoding(maker) else _plain(node, maker, weight)
        if product is not None:
            yield product


def _is_decoding(maker: ir.Node | None) -> bool:
    return maker is not None and maker.op_type == "DequantizeLinear"


def _plain(node: ir.Node, maker: ir.Node | None, weight: ir.Value) -> _Product | None:
    """A matrix in floats, as it is or after a cast."""
    tensor = weight.const_value
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    inputs, *others = tensor.shape.numpy()
    if len(others) != 1 or (maker is not None and maker.op_type != "Cast"):
        return None
    return _Product(node, weight, inputs, tensor.dtype if maker is None else _cast_to(maker), lambda: _values(tensor))


def _coded(node: ir.Node, maker: ir.Node | None, weight: ir.Value) -> _Product | None:
    """A matrix in codes of 8 bits, with a scale for each block of inputs."""
    assert maker is not None
    codes, scale = weight.const_value, maker.inputs[1]
    if codes is None or codes.dtype != ir.DataType.INT8 or scale is None:
        return None
    cast = scale.producer()
    stored = scale if cast is None else cast.inputs[0]
    if stored is None or stored.const_value is None or "block_size" not in maker.attributes:
        return None
    scales, block = stored.const_value, maker.attributes["block_size"].as_int()

    def read() -> Array:
        return _values(codes).astype(np.float32) * np.repeat(_values(scales).astype(np.float32), block, axis=0)

    return _Product(node, weight, codes.shape.numpy()[0], scales.dtype if cast is None else _cast_to(cast), read)


def _block(inputs: int, largest: int) -> int | None:
    """The largest block that divides the inputs of a matrix."""
    return max((size for size in BLOCK_SIZES if size <= largest and inputs % size == 0), default=None)


def _replace(graph: ir.Graph, product: _Product, blocks: Blocks, read: Callable[[], Array]) -> None:
    name, floats, coded = f"{product.weight.name}.int{blocks.bits}", product.type.numpy(), _TYPES[blocks.bits]
    if name not in graph.initializers:
        codes, scales = quantize(read().T, blocks)
        for end, array in (("", codes.T.astype(coded.numpy())), (".scale", scales.T.astype(floats))):
            held = ir.tensor(np.ascontiguousarray(array), name=f"{name}{end}")
            graph.register_initializer(ir.Value(name=f"{name}{end}", const_value=held))
    decoded = ir.node(
        "DequantizeLinear",
        [graph.initializers[name], graph.initializers[f"{name}.scale"]],
        {"axis": 0, "block_size": blocks.size},
        name=f"{product.node.name}/decoded",
    )
    graph.insert_before(product.node, decoded)
    product.node.replace_input_with(1, decoded.outputs[0])


def _cast_to(maker: ir.Node) -> ir.DataType:
    """The type that a Cast gives."""
    return ir.DataType(maker.attributes["to"].as_int())


def _values(tensor: ir.TensorProtocol) -> Array:
    """A tensor's numbers. Files of weights may have several names, as releases share them, which onnx_ir refuses below
    a folder.

    Where they lie was checked when the bundle was opened.
    """
    if isinstance(tensor, ir.ExternalTensor):
        place = Path(tensor.path), tensor.offset, tensor.length, tensor.dtype
        tensor = ir.ExternalTensor(*place, shape=tensor.shape, name=tensor.name)
    array: Array = tensor.numpy()
    return array
