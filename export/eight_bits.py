"""Matrices of an exported graph that were kept in floats, in codes of 8 bits instead.

Made from the floats of the bundle, which are the checkpoint's own, in the form in which an export in 8 bits writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.export.quantization import BLOCK_SIZES, Blocks, quantize

__all__ = ["LARGEST_BLOCK", "use_eight_bits"]

LARGEST_BLOCK = 32  # a scale for every 32 inputs, as exports have them
_FEWEST_INPUTS = 64  # a smaller matrix is not worth it


def use_eight_bits(model: ir.Model, names: frozenset[str] | None = None) -> int:
    """Replace the model's float matrices; how many there were.

    Args: names: of weights; None: all that a MatMul takes
    """
    found = list(_matrices(model.graph, names))
    for product, weight, tensor in found:
        _replace(model.graph, product, weight, tensor)
    return len({str(weight.name) for _, weight, _ in found})


def _matrices(graph: ir.Graph, names: frozenset[str] | None) -> Iterator[tuple[ir.Node, ir.Value, ir.TensorProtocol]]:
    """Products, and the weights (K,N) in floats that they take as they are or after a cast."""
    for node in graph:
        value = node.inputs[1] if node.op_type == "MatMul" else None
        maker = None if value is None else value.producer()
        if maker is not None and maker.op_type == "Cast":
            value = maker.inputs[0]
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            continue
        if names is not None and str(value.name) not in names:
            continue
        inputs, *others = tensor.shape.numpy()
        if len(others) == 1 and _block(inputs) is not None and inputs >= _FEWEST_INPUTS:
            yield node, value, tensor


def _block(inputs: int) -> int | None:
    """The largest block that divides the inputs of a matrix."""
    return max((size for size in BLOCK_SIZES if size <= LARGEST_BLOCK and inputs % size == 0), default=None)


def _replace(graph: ir.Graph, product: ir.Node, weight: ir.Value, tensor: ir.TensorProtocol) -> None:
    name, block = f"{weight.name}.int8", _block(tensor.shape.numpy()[0])
    assert block is not None
    taken = product.inputs[1]
    # The product takes floats of one type: the weight's, or that of the cast between.
    floats = tensor.dtype if taken is weight or taken is None else _cast_to(taken)
    if name not in graph.initializers:
        codes, scales = quantize(_values(tensor).T, Blocks(8, block))
        for end, array in (("", codes.T), (".scale", scales.T.astype(floats.numpy()))):
            held = ir.tensor(np.ascontiguousarray(array), name=f"{name}{end}")
            graph.register_initializer(ir.Value(name=f"{name}{end}", const_value=held))
    decoded = ir.node(
        "DequantizeLinear",
        [graph.initializers[name], graph.initializers[f"{name}.scale"]],
        {"axis": 0, "block_size": block},
        name=f"{product.name}/decoded",
    )
    graph.insert_before(product, decoded)
    product.replace_input_with(1, decoded.outputs[0])
    maker = None if taken is None else taken.producer()
    if maker is not None and not maker.outputs[0].uses():
        graph.remove(maker, safe=True)
    if not weight.uses():
        del graph.initializers[str(weight.name)]


def _cast_to(value: ir.Value) -> ir.DataType:
    """The type that a Cast gives."""
    maker = value.producer()
    assert maker is not None
    return ir.DataType(maker.attributes["to"].as_int())


def _values(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """(K,N). Files of weights may have several names, as releases share them, which onnx_ir refuses below a folder.

    Where they lie was checked when the bundle was opened.
    """
    if isinstance(tensor, ir.ExternalTensor):
        place = Path(tensor.path), tensor.offset, tensor.length, tensor.dtype
        tensor = ir.ExternalTensor(*place, shape=tensor.shape, name=tensor.name)
    array: npt.NDArray[Any] = tensor.numpy()
    return array
