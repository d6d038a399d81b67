"""One ONNX graph under construction: named inputs, weights in external files, named outputs.

A thin layer: operators come from `onnxscript.GraphBuilder`, places of weights from a `WeightTable`.
Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import onnx_ir as ir
import onnxscript
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sdrpn.bundle.graphs import RoleName
from sdrpn.export.dynamic_quantize import dynamic_quantize, dynamic_quantize_function
from sdrpn.export.float_formats import FP4_BLOCK
from sdrpn.export.weights import QuantizedTensor, WeightTable

__all__ = ["Declared", "GraphAuthor", "Operators"]

Dim = int | str

# The oldest that the opset allows: old parsers refuse newer ones.
_IR_VERSION_OF_OPSET = {20: 9, 21: 10, 24: 11}


class Operators(Protocol):
    """`op.MatMul(x, y)` appends a node; the keyword `_outputs=["name"]` names its result."""

    def __getattr__(self, operator: str) -> Callable[..., ir.Value]: ...


class Declared(NamedTuple):
    """An input or output, as in a manifest."""

    name: str
    dtype: ir.DataType
    dims: tuple[Dim, ...]
    role: RoleName
    of: str = ""  # the input that it belongs to: see TensorInfo


class GraphAuthor:
    """Author of one graph; `op.<Operator>(...)` appends a node, `weight(...)` names an external tensor."""

    def __init__(self, name: str, opset: int, table: WeightTable) -> None:
        self.name = name
        self.opset = max(opset, table.least_opset)
        self._table = table
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": self.opset})
        self._builder = onnxscript.GraphBuilder(self._graph)
        self._weights: dict[tuple[str, ir.DataType | None], ir.Value] = {}
        self._declared: dict[str, Declared] = {}
        self._functions: list[ir.Function] = []
        self._identities: dict[tuple[int, ir.DataType], ir.Value] = {}

    @property
    def op(self) -> Operators:
        """Operators of the graph's opset, by name."""
        return cast("Operators", self._builder.op)

    def split(
        self, x: ir.Value, names: Sequence[str], sizes: Sequence[int] | None = None, *, axis: int = -1
    ) -> list[ir.Value]:
        """Split an axis into parts called `names`, of equal or of the given sizes."""
        split: Callable[..., Sequence[ir.Value]] = self._builder.op.Split
        if sizes is None:
            return list(split(x, num_outputs=len(names), axis=axis, _outputs=list(names)))
        return list(split(x, self.constant(sizes, ir.DataType.INT64), axis=axis, _outputs=list(names)))

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all nodes and results inside, as in `layers.3.attention`."""
        self._builder.push_module(name)
        try:
            yield
        finally:
            self._builder.pop_module()

    def input(self, declared: Declared) -> ir.Value:
        """Declare an input; a string in its dims is a dynamic dimension."""
        self._declared[declared.name] = declared
        return self._builder.input(declared.name, declared.dtype, declared.dims)

    def output(self, value: ir.Value, declared: Declared) -> None:
        """Declare `value` as an output."""
        value.shape = ir.Shape(declared.dims)
        value.dtype = declared.dtype
        self._declared[declared.name] = declared
        self._builder.add_output(value, declared.name)

    def weight(self, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """The weight `name` of the table as `dtype` (None: as stored); its bytes are in the table's file.

        Casts and dequantisation are nodes of the graph, which inference libraries fold or fuse at load time.
        """
        key = name, dtype
        if key not in self._weights:
            quantized = self._table.quantized_tensor(name)
            if quantized is None:
                self._weights[key] = self._cast(self._stored(self._table.external_tensor(name)), dtype)
            else:
                self._weights[key] = self._dequantized(quantized, dtype)
        return self._weights[key]

    def _dequantized(self, tensor: QuantizedTensor, dtype: ir.DataType | None) -> ir.Value:
        factor = None if tensor.factor is None else self._cast(self._stored(tensor.factor), dtype)
        if tensor.scales is None:
            return self.op.DequantizeLinear(self._stored(tensor.codes), factor)
        scales = self._stored(tensor.scales)
        scales = self._cast(scales, dtype) if factor is None else self.op.DequantizeLinear(scales, factor)
        return self.op.DequantizeLinear(self._stored(tensor.codes), scales, axis=0, block_size=tensor.block)

    def product(self, x: ir.Value, weight: str, dtype: ir.DataType, name: str | None = None) -> ir.Value:
        """x (B,S,K) @ weight [K,N] in `dtype`, with x rounded to the weight's form if its inputs have a factor."""
        factor, quantized = self._table.input_factors.get(weight), self._table.quantized_tensor(weight)
        if factor is not None and quantized is not None:
            x = self._rounded(x, self.constant(factor, dtype), in_blocks=quantized.scales is not None)
        outputs = {} if name is None else {"_outputs": [name]}
        return self.op.MatMul(x, self.weight(weight, dtype), **outputs)

    def codes(self, x: ir.Value, step: ir.Value, dtype: ir.DataType) -> ir.Value:
        """x / step, rounded to an 8-bit type; one step for all."""
        zero = ir.tensor(np.zeros((), dtype.numpy()), name="zero")
        return self.op.QuantizeLinear(x, step, self._builder.initializer(zero, f"zero_{len(self._graph.initializers)}"))

    def _rounded(self, x: ir.Value, factor: ir.Value, *, in_blocks: bool) -> ir.Value:
        """x rounded to fp8, or in blocks to nvfp4."""
        if not in_blocks:
            return self.op.DequantizeLinear(self.codes(x, factor, ir.DataType.FLOAT8E4M3FN), factor)
        if not self._functions:
            self._functions = [dynamic_quantize_function(self.opset)]
            self._graph.opset_imports[self._functions[0].domain] = 1
        codes, scales = dynamic_quantize(self._builder, x, factor)
        steps = self.op.DequantizeLinear(scales, factor)
        return self.op.DequantizeLinear(codes, steps, axis=-1, block_size=FP4_BLOCK)

    def _stored(self, tensor: ir.ExternalTensor) -> ir.Value:
        name = str(tensor.name)
        known = self._graph.initializers.get(name)
        return known if known is not None else self._builder.initializer(tensor, name, qualify=False)

    def _cast(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        return value if dtype is None or value.dtype == dtype else self.op.Cast(value, to=int(dtype))

    def constant(self, value: float | Sequence[float], dtype: ir.DataType) -> ir.Value:
        """A small constant kept inside the graph."""
        return self._builder.initializer(ir.tensor(value, dtype=dtype), f"constant_{len(self._graph.initializers)}")

    def identity(self, side: int, dtype: ir.DataType) -> ir.Value:
        """The identity matrix (side,side), kept inside the graph once."""
        found = self._identities.get((side, dtype))
        if found is None:
            matrix = ir.tensor(np.eye(side).tolist(), dtype=dtype)
            found = self._builder.initializer(matrix, f"identity_{side}")
            self._identities[side, dtype] = found
        return found

    def save(self, path: Path) -> None:
        """Write the graph without unused nodes; weights stay in the table's files."""
        version = _IR_VERSION_OF_OPSET[self.opset]
        model = ir.Model(self._graph, ir_version=version, producer_name="sdrpn", functions=self._functions)
        RemoveUnusedNodesPass()(model)
        _tidy_names(self._graph)
        ir.save(model, path)

    def inputs(self) -> list[Declared]:
        """What was declared with `input`, in order."""
        return [self.declared(value) for value in self._graph.inputs]

    def outputs(self) -> list[Declared]:
        """What was declared with `output`, in order."""
        return [self.declared(value) for value in self._graph.outputs]

    def weight_files(self) -> tuple[str, ...]:
        """The files, inside the bundle, that the graph points into; complete once it is saved."""
        tensors = (value.const_value for value in self._graph.initializers.values())
        return tuple(sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}))

    def declared(self, value: ir.Value) -> Declared:
        """An input or output, as it was declared."""
        return self._declared[str(value.name)]


def _tidy_names(graph: ir.Graph) -> None:
    """Remove the builder's `v_` from names, and number duplicates."""
    declared = set(graph.outputs)
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for value in (v for node in graph for v in node.outputs if v not in declared):
        value.name = _free_name(str(value.name).removeprefix("v_"), taken)
        taken.add(value.name)


def _free_name(name: str, taken: Set[str]) -> str:
    if name not in taken:
        return name
    return next(numbered for i in count(1) if (numbered := f"{name}_{i}") not in taken)
