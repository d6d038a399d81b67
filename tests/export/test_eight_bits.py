"""Float matrices of a graph in codes of 8 bits: which ones, and that they are those of an export in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.eight_bits import use_eight_bits

GRAPH = "fused-int4-cpu.onnx"


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """With head, RPN and tower in fp16, and in 8 bits."""
    folder = tmp_path_factory.mktemp("eight_bits")
    options = ExportOptions("int4"), ExportOptions("int4", int8=("lm_head", "rpn", "vision"))
    for name, each in zip(("floats", "codes"), options, strict=True):
        export_bundle(tiny_checkpoint, folder / name, each)
    return folder / "floats", folder / "codes"


def codes_of(model: ir.Model) -> list[np.ndarray]:
    """The codes of 8 bits of a graph, in the order of its layers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return [tensor.numpy() for tensor in tensors if tensor is not None and tensor.dtype == ir.DataType.INT8]


@pytest.mark.parametrize("graph", ["tail", "rpn"])
def test_codes_are_those_of_an_export(bundles: tuple[Path, Path], graph: str) -> None:
    """But for the fp16 between: a weight at the border of two codes may get either."""
    floats, codes = (ir.load(folder / f"{graph}.{GRAPH}") for folder in bundles)
    assert use_eight_bits(floats) > 0
    for found, expected in zip(codes_of(floats), codes_of(codes), strict=True):
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.02


def test_some_of_them(bundles: tuple[Path, Path]) -> None:
    model = ir.load(bundles[0] / f"tail.{GRAPH}")
    assert use_eight_bits(model, frozenset({"nothing.weight"})) == 0
    assert use_eight_bits(model, frozenset({"llm.head.weight"})) == 1
    (head,) = codes_of(model)
    assert head.shape == (64, 96)
