"""Simulate graphs in bf16 and nvfp4 in types that ONNX Runtime supports, with the same roundings. Knows no models.

ONNX Runtime has no kernels for these types on a CPU. In a simulated graph

    bf16     becomes float32. Weights keep their values; inputs and outputs of products with them, and rows of caches,
             are rounded to bf16. Within an attention nothing is rounded
    nvfp4    codes of weights, in the same file, are looked up in a table of the sixteen numbers; inputs are rounded
             by arithmetic. Everything else is unchanged

Weights stay in their files: a simulated bundle has new graphs, and links to the existing files.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from sdrpn.bundle.bundle import (
    MANIFEST_NAME,
    Bundle,
    FileInfo,
    GraphInfo,
    TensorInfo,
    Variant,
    file_digest,
    open_bundle,
)

__all__ = ["runnable_bundle", "simulated_graph"]

_BLOCK = 16  # of nvfp4
_FP4_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_DYNAMIC = "TRT_FP4DynamicQuantize"


@contextmanager
def runnable_bundle(bundle: Bundle, variant: Variant) -> Iterator[Bundle]:
    """A bundle whose variant ONNX Runtime can run: the same one, or a temporary simulated one."""
    if not variant.for_engines_only:
        yield bundle
        return
    # Beside the bundle, so that its files can be linked, not copied; elsewhere if that folder is not writable.
    beside = bundle.path.resolve().parent
    place = beside if os.access(beside, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f".{bundle.path.name}.simulated.", dir=place) as folder:
        yield _simulated_bundle(bundle, variant, Path(folder))


def _simulated_bundle(bundle: Bundle, variant: Variant, folder: Path) -> Bundle:
    tokenizer = [bundle.manifest.tokenizer] if bundle.manifest.tokenizer else []
    files = dict(bundle.manifest.files)
    for name in (*variant.files, *tokenizer):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _link(bundle.file(name), folder / name)
    for graph in variant.graphs.values():
        model = simulated_graph(onnx.load(str(bundle.file(graph.file)), load_external_data=False))
        (folder / graph.file).unlink()
        (folder / graph.file).write_bytes(model.SerializeToString())
        files[graph.file] = FileInfo((folder / graph.file).stat().st_size, file_digest(folder / graph.file))
    graphs = {name: _with_float_caches(graph) for name, graph in variant.graphs.items()}
    computes_in = "fp32" if variant.computes_in.has_range_of_float32 else "fp16"
    variants = {variant.name: dataclasses.replace(variant, graphs=graphs, precision=computes_in)}
    manifest = dataclasses.replace(bundle.manifest, variants=variants, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")
    return open_bundle(folder)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # relative links would be broken in another folder
    except OSError:
        shutil.copyfile(source, target)


def _with_float_caches(graph: GraphInfo) -> GraphInfo:
    def tensors(side: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
        return tuple(
            dataclasses.replace(tensor, dtype="float32" if tensor.dtype == "bfloat16" else tensor.dtype)
            for tensor in side
        )

    return dataclasses.replace(graph, inputs=tensors(graph.inputs), outputs=tensors(graph.outputs))


def simulated_graph(model: ModelProto) -> ModelProto:
    """A copy in types that ONNX Runtime supports; its external weights are the same bytes of the same files."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _Rewriter(copy.graph).run()
    del copy.functions[:]
    return copy


class _Rewriter:
    """Replaces nodes of one graph, in order."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.codes = {node.output[0] for node in graph.node if node.op_type == _DYNAMIC}
        self.made_of_weights: set[str] = set(self.weights)
        self.in_bf16 = TensorProto.BFLOAT16 in self.weights.values()
        # Outputs with new rows of read-only caches; whole caches are rounded where rows are written.
        caches = {node.output[0] for node in graph.node if node.op_type == "TensorScatter"}
        self.bf16_inputs = _in_bf16(graph.input)
        self.rounded = _in_bf16(graph.output) - caches

    def run(self) -> None:
        """All nodes, initializers, inputs and outputs."""
        for node in self.graph.node:
            self._replace(node)
        del self.graph.value_info[:]  # types of values that no longer exist
        for value in (*self.graph.input, *self.graph.output):
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del self.graph.node[:]
        self.graph.node.extend(self._bf16_weights())
        self.graph.node.extend(self.nodes)

    def _replace(self, node: NodeProto) -> None:
        """Replace one node, if it involves these types."""
        if set(node.input) <= self.made_of_weights and node.op_type in ("Cast", "DequantizeLinear", "Transpose"):
            self.made_of_weights.update(node.output)
        target = _attribute(node, "to")
        if node.op_type == _DYNAMIC:
            self._round_to_fp4(node)
        elif node.op_type == "DequantizeLinear" and self.weights.get(node.input[0]) == TensorProto.FLOAT4E2M1:
            self._look_up_fp4(node)
        elif node.op_type == "DequantizeLinear" and node.input[0] in self.codes:
            self._scale_blocks(node.input[0], node.input[1], node.output[0], axis=-1)
        elif node.op_type == "Cast" and target == TensorProto.BFLOAT16:
            self._round_to_bf16(node.input[0], node.output[0])
        elif node.op_type == "TensorScatter" and node.input[0] in self.bf16_inputs:
            cache, rows, *others = node.input
            self._round_to_bf16(rows, f"{node.output[0]}.rows")
            node.input[:] = [cache, f"{node.output[0]}.rows", *others]
            self.nodes.append(node)
        elif node.output[0] in self.rounded or (self._multiplies_weights(node) and self.in_bf16):
            output, node.output[0] = node.output[0], f"{node.output[0]}.exact"
            self.nodes.append(node)
            self._round_to_bf16(node.output[0], output)
        else:
            self.nodes.append(node)

    def _multiplies_weights(self, node: NodeProto) -> bool:
        return node.op_type == "MatMul" and node.input[1] in self.made_of_weights

    def _round_to_bf16(self, name: str, output: str) -> None:
        rounded = self._add("Cast", [name], f"{output}.bf16", to=TensorProto.BFLOAT16)
        self._add("Cast", [rounded], output, to=TensorProto.FLOAT)

    def _bf16_weights(self) -> Iterator[NodeProto]:
        """Rename every bf16 weight, and give its name to a float32 copy."""
        for tensor in self.graph.initializer:
            if tensor.data_type == TensorProto.BFLOAT16:
                name, tensor.name = tensor.name, f"{tensor.name}.bf16"
                yield helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)

    def _look_up_fp4(self, node: NodeProto) -> None:
        """Read the codes as the bytes of the file, with two 4-bit numbers per byte."""
        (tensor,) = (initializer for initializer in self.graph.initializer if initializer.name == node.input[0])
        tensor.data_type = TensorProto.UINT4
        out = node.output[0]
        places = self._add("Cast", [tensor.name], f"{out}.places", to=TensorProto.INT32)
        table = self._constant("numbers", TensorProto.FLOAT, [*_FP4_NUMBERS, *(-number for number in _FP4_NUMBERS)])
        numbers = self._add("Gather", [table, places], f"{out}.numbers", axis=0)
        self._scale_blocks(numbers, node.input[1], out, axis=0, shape=list(tensor.dims))

    def _scale_blocks(self, numbers: str, scales: str, output: str, *, axis: int, shape: Sequence[int] = ()) -> None:
        """numbers * scales, each scale for 16 numbers along the first axis (of `shape`) or the last one; as fp16."""
        apart = [shape[0] // _BLOCK, _BLOCK, shape[1]] if axis == 0 else [0, 0, -1, _BLOCK]
        together = list(shape) if axis == 0 else [0, 0, -1]
        place = 1 if axis == 0 else -1
        exact = self._add("Cast", [scales], f"{output}.scales", to=TensorProto.FLOAT)
        column = self._add("Unsqueeze", [exact, self._ints([place])], f"{output}.column")
        blocks = self._add("Reshape", [numbers, self._ints(apart)], f"{output}.blocks")
        product = self._add("Mul", [blocks, column], f"{output}.product")
        whole = self._add("Reshape", [product, self._ints(together)], f"{output}.whole")
        self._add("Cast", [whole], output, to=TensorProto.FLOAT16)

    def _round_to_fp4(self, node: NodeProto) -> None:
        """x (B,S,K), factor -> the nearest of the sixteen numbers, in units of the scales; and the scales in fp8."""
        (x, factor), (codes, scales) = node.input, node.output
        rows = self._add("Cast", [x], f"{codes}.rows", to=TensorProto.FLOAT)
        step = self._add("Cast", [factor], f"{codes}.step", to=TensorProto.FLOAT)
        blocks = self._add("Reshape", [rows, self._ints([0, 0, -1, _BLOCK])], f"{codes}.blocks")
        size = self._add("Abs", [blocks], f"{codes}.size")
        largest = self._add("ReduceMax", [size, self._ints([3])], f"{codes}.largest", keepdims=0)
        wanted = self._add("Div", [self._add("Div", [largest, step], f"{codes}.steps"), self._float(6.0)], f"{codes}.w")
        never_zero = self._add("Max", [wanted, self._float(2.0**-9)], f"{codes}.never_zero")
        self._add("Cast", [never_zero], scales, to=TensorProto.FLOAT8E4M3FN)
        units = self._add("DequantizeLinear", [scales, step], f"{codes}.units")
        column = self._add("Unsqueeze", [units, self._ints([-1])], f"{codes}.unit_column")
        in_units = self._add("Div", [blocks, column], f"{codes}.in_units")
        rounded = self._nearest(in_units, codes)
        self._add("Reshape", [rounded, self._ints([0, 0, -1])], codes)

    def _nearest(self, name: str, prefix: str) -> str:
        """Round to steps of 1/2 below 2, of 1 below 4 and of 2 up to 6; ties to even, as Round does."""
        size = self._add("Abs", [name], f"{prefix}.in_units_size")
        large = self._add("GreaterOrEqual", [size, self._float(4.0)], f"{prefix}.large")
        small = self._add("Less", [size, self._float(2.0)], f"{prefix}.small")
        rest = self._add("Where", [large, self._float(2.0), self._float(1.0)], f"{prefix}.rest")
        spacing = self._add("Where", [small, self._float(0.5), rest], f"{prefix}.spacing")
        count = self._add("Round", [self._add("Div", [name, spacing], f"{prefix}.spacings")], f"{prefix}.count")
        nearest = self._add("Mul", [count, spacing], f"{prefix}.nearest")
        return self._add("Clip", [nearest, self._float(-6.0), self._float(6.0)], f"{prefix}.clipped")

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _ints(self, values: list[int]) -> str:
        return self._constant("_".join(map(str, values)), TensorProto.INT64, values)

    def _float(self, value: float) -> str:
        name = f"simulated.{value}"
        if name not in self.weights:
            self.weights[name] = TensorProto.FLOAT
            self.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        return name

    def _constant(self, name: str, dtype: int, values: Sequence[float]) -> str:
        name = f"simulated.{name}"
        if name not in self.weights:
            self.weights[name] = dtype
            self.graph.initializer.append(helper.make_tensor(name, dtype, [len(values)], values))
        return name


def _in_bf16(values: Iterable[ValueInfoProto]) -> set[str]:
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}


def _attribute(node: NodeProto, name: str) -> int | None:
    found: list[AttributeProto] = [attribute for attribute in node.attribute if attribute.name == name]
    return found[0].i if found else None
