"""Decode steps with OpenVINO on a CPU: a second model of a graph, for one new row of each sequence.

The library's kernels are made for many rows: one row takes them up to twice as long as reading what they multiply. So
the matrices are kept once more, as `sdrpn._native_steps` reads them, and products and attention of the second model
call that. Everything else the two models have in common, caches included.

B sequences, H heads, H_kv of them for keys, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import openvino

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.runtime.backends.openvino_graph import PagedAttention, drop_unused_inputs, paged_attentions
from sdrpn.runtime.backends.runner import Array

__all__ = ["MOST_SEQUENCES", "ConstantProduct", "StepCaches", "StepModel", "constant_products"]

MOST_SEQUENCES = 8  # beyond, the library's own products take less time

_BITS = {"i4": 4, "i8": 8}  # of codes, by the names of their types
_PAGE_TYPES = {"f16": np.uint16, "f32": np.float32}  # of caches, and how their numbers are handed over
_LANES = 16  # channels of a head are a multiple of these


@dataclass
class StepCaches:
    """The caches of the step that runs, which the attentions of its model read and write in place."""

    pages: dict[str, Array] = field(default_factory=dict)  # by the names of the graph's inputs
    past: Array = field(default_factory=lambda: np.zeros(0, np.int32))  # (B,): rows in use


class StepModel:
    """The model of one graph for single rows, and its matrices."""

    def __init__(
        self,
        native: ModuleType,
        model: openvino.Model,
        products: Sequence[ConstantProduct],
        graph: GraphInfo,
        page_types: Mapping[str, str],
        threads: int,
    ) -> None:
        """Take `model` over: its products with constant matrices and its attentions are replaced.

        Args:
            native: `sdrpn._native_steps`
            products: `constant_products` of `model`
            page_types: the types in which the library holds caches in pages
            threads: for each product
        """
        self._model, self._graph = model, graph
        self.caches = StepCaches()
        self.nbytes = 0  # of the matrices
        for product in products:
            matrix = product.matrix.packed(native)
            self.nbytes += matrix.nbytes
            made = _Product([product.node.input_value(0)], (matrix, product.matrix.columns, threads))
            product.node.output(0).replace(made.output(0))
        for attention in paged_attentions(model):
            types = {page_types[name] for name in attention.caches}
            if types <= _PAGE_TYPES.keys() and attention.width % _LANES == 0:
                attend = _Attend(native, self.caches, attention, _PAGE_TYPES[types.pop()], threads)
                attention.node.output(0).replace(_Attention(attention.rows, attend).output(0))
        drop_unused_inputs(model)
        model.validate_nodes_and_infer_types()

    def compile(self, core: openvino.Core, device: str, options: Mapping[str, Any], batch: int) -> Any:
        """The model for one row of each of `batch` sequences.

        Shapes that are fixed spare the library most of what it does between the operators.
        """
        dims = {tensor.name: tensor.dims for tensor in self._graph.inputs if not tensor.is_cache}
        extents = {"batch": batch, "sequence": 1}
        shapes = {}
        for value in self._model.inputs:
            name = next((name for name in value.get_names() if name in dims), None)
            if name is not None:
                shapes[name] = openvino.PartialShape(
                    [extents.get(dim, -1) if isinstance(dim, str) else dim for dim in dims[name]]
                )
        self._model.reshape(shapes)
        # The threads are those of products and attention: beside these, the library's would have next to nothing to do.
        # Helpers inherit the cores of the thread that starts them, which the library would bind to one.
        alone = {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
        return core.compile_model(self._model, device, {**options, **alone})


def constant_products(model: openvino.Model) -> tuple[ConstantProduct, ...]:
    """The products that a step model computes; none where a matrix would be held twice as the library has it."""
    products = tuple(_products(model))
    nodes = {product.node.get_name() for product in products}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.get_name() not in nodes and _is_constant(node.input_value(1)):
            return ()
    return products


# Matrices -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """A constant matrix (inputs,columns): codes with a scale for each block of inputs, or float16."""

    numbers: Any  # constants of the model
    scales: Any | None
    bits: int

    @property
    def columns(self) -> int:
        return int(self.numbers.get_output_shape(0)[1])

    @property
    def nbytes(self) -> int:
        inputs, columns = self.numbers.get_output_shape(0)
        scales = 0 if self.scales is None else int(np.prod(self.scales.get_output_shape(0)))
        return int(inputs * columns * self.bits // 8 + scales * np.float16().itemsize)

    def packed(self, native: ModuleType) -> Any:
        inputs, columns = self.numbers.get_output_shape(0)
        if self.scales is None:
            return native.PackedMatrix.half(self.numbers.data.astype(np.float16).view(np.uint16))
        return native.PackedMatrix.coded(
            self.numbers.data.view(np.uint8).reshape(-1),
            self.scales.data.astype(np.float16).reshape(-1, columns).view(np.uint16),
            bits=self.bits,
            inputs=inputs,
            columns=columns,
        )


@dataclass(frozen=True)
class ConstantProduct:
    """A product of rows with a constant matrix."""

    node: Any
    matrix: _Matrix


def _products(model: openvino.Model) -> Iterator[ConstantProduct]:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and not any(node.get_attributes().values()):  # nothing transposed
            matrix = _matrix(node.input_value(1).get_node())
            if matrix is not None:
                yield ConstantProduct(node, matrix)


def _matrix(node: Any) -> _Matrix | None:
    path = []
    while node.get_type_name() != "Constant" and node.inputs():
        path.append(node)
        node = node.input_value(0).get_node()
    kinds = [each.get_type_name() for each in path]
    if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 2:
        return None
    if kinds in ([], ["Convert"]) and _is_half(node):
        return _Matrix(node, None, 16)
    bits = _BITS.get(node.get_element_type().get_type_name())
    if kinds != ["Reshape", "Multiply", "Convert", "Reshape"] or bits is None:
        return None
    scales = path[1].input_value(1).get_node()
    while scales.get_type_name() in ("Unsqueeze", "Convert"):
        scales = scales.input_value(0).get_node()
    if scales.get_type_name() != "Constant" or not _is_half(scales):
        return None
    block = int(path[3].get_output_shape(0)[1])
    return _Matrix(node, scales, bits) if block % 8 == 0 else None


def _is_half(constant: Any) -> bool:
    """Whether a constant's numbers are those of float16, as they are or widened."""
    if constant.get_element_type() == openvino.Type.f16:
        return True
    if constant.get_element_type() != openvino.Type.f32:
        return False
    with np.errstate(over="ignore"):  # part by part: a head has a hundred million of them
        return all(np.array_equal(rows.astype(np.float16), rows) for rows in constant.data)


def _is_constant(value: Any) -> bool:
    """Whether it depends on no input of the model."""
    seen, ahead = set[str](), [value.get_node()]
    while ahead:
        node = ahead.pop()
        if node.get_type_name() == "Parameter":
            return False
        if node.get_name() not in seen:  # a value may be used many times, and lie a thousand nodes deep
            seen.add(node.get_name())
            ahead += [port.get_source_output().get_node() for port in node.inputs()]
    return True


# Operators ------------------------------------------------------------------------------------------------------------


class _Product(openvino.Op):  # type: ignore[misc]  # the library has no types
    """Rows (...,inputs) times a packed matrix -> (...,columns)."""

    def __init__(self, inputs: Sequence[Any] | None = None, product: tuple[Any, int, int] = (None, 0, 1)) -> None:
        """Args: product: the packed matrix, its columns, and threads"""
        self._product = product  # the base class asks for the shape
        super().__init__(self, inputs)

    def validate_and_infer_types(self) -> None:
        """Called by the library, as the others here."""
        shape = self.get_input_partial_shape(0)
        shape[shape.rank.get_length() - 1] = self._product[1]
        self.set_output_type(0, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, inputs: Sequence[Any]) -> _Product:
        """The same product of other rows."""
        return _Product(inputs, self._product)

    def has_evaluate(self) -> bool:
        """Whether there is `evaluate`."""
        return True

    def evaluate(self, outputs: Sequence[openvino.Tensor], inputs: Sequence[openvino.Tensor]) -> bool:
        """Compute it."""
        matrix, columns, threads = self._product
        rows = inputs[0].data
        rows = rows.reshape(-1, rows.shape[-1])
        matrix.multiply(rows, outputs[0].data.reshape(rows.shape[0], columns), threads=threads)
        return True


class _Attend:
    """Attention to one pair of caches."""

    def __init__(
        self, native: ModuleType, caches: StepCaches, attention: PagedAttention, numbers: Any, threads: int
    ) -> None:
        self._native, self._caches, self._threads, self._numbers = native, caches, threads, numbers
        self._keys, self._values = attention.caches
        self._scale, self._window = attention.width**-0.5, attention.window

    def __call__(self, rows: Sequence[Array], out: Array) -> None:
        """Args: rows: of queries (B,H*d), keys and values (B,H_kv*d); out: as queries"""
        pages = self._caches.pages
        self._native.attend(
            *rows,
            pages[self._keys].view(self._numbers),
            pages[self._values].view(self._numbers),
            self._caches.past,
            out,
            scale=self._scale,
            window=self._window,
            threads=self._threads,
        )


class _Attention(openvino.Op):  # type: ignore[misc]
    """Queries (B,H*d), new keys and values (B,H_kv*d) -> (B,H*d), over caches that are no inputs of the model."""

    def __init__(self, inputs: Sequence[Any] | None = None, attend: _Attend | None = None) -> None:
        self._attend = attend
        super().__init__(self, inputs)

    def validate_and_infer_types(self) -> None:
        """See `_Product`."""
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: Sequence[Any]) -> _Attention:
        """The same caches."""
        return _Attention(inputs, self._attend)

    def has_evaluate(self) -> bool:
        """Whether there is `evaluate`."""
        return True

    def evaluate(self, outputs: Sequence[openvino.Tensor], inputs: Sequence[openvino.Tensor]) -> bool:
        """Compute it."""
        assert self._attend is not None
        self._attend([each.data for each in inputs], outputs[0].data)
        return True
