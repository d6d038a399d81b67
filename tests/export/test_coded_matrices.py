"""Matrices of a graph in codes of 8 and 4 bits: which ones, and that they are those of an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sdrpn.checkpoint import open_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.coded_matrices import use_eight_bits, use_four_bits

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


HEAD = "llm.head.weight"


@pytest.fixture(scope="module")
def four_bits(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head in 4 bits, as exports write it."""
    path = tmp_path_factory.mktemp("four_bits") / "bundle"
    export_bundle(tiny_checkpoint, path, ExportOptions("int4", keep=("rpn", "vision")))
    return path


def head_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales (K,N) of an exported head."""
    found = ir.load(path / f"tail.{GRAPH}").graph.initializers
    codes, scales = found[HEAD].const_value, found[f"{HEAD}.scale"].const_value
    assert codes is not None
    assert scales is not None
    return codes.numpy().astype(int), scales.numpy()


def made(model: ir.Model) -> np.ndarray:
    codes = model.graph.initializers[f"{HEAD}.int4"].const_value
    assert codes is not None
    assert codes.dtype == ir.DataType.INT4
    assert HEAD not in model.graph.initializers
    assert f"{HEAD}.scale" not in model.graph.initializers
    return codes.numpy().astype(int)


def test_a_head_in_4_bits_from_the_checkpoint_is_that_of_an_export(
    bundles: tuple[Path, Path], four_bits: Path, tiny_checkpoint: Path
) -> None:
    expected, _ = head_of(four_bits)
    with open_checkpoint(tiny_checkpoint) as source:
        floats = source.read(HEAD)
    for folder in bundles:  # in fp16 and in 8 bits
        model = ir.load(folder / f"tail.{GRAPH}")
        assert use_four_bits(model, HEAD, 32, floats) == 1
        np.testing.assert_array_equal(made(model), expected)


@pytest.mark.parametrize("which", [0, 1], ids=["floats", "8 bits"])
def test_what_the_bundle_has_adds_less_than_a_hundredth(
    bundles: tuple[Path, Path], four_bits: Path, tiny_checkpoint: Path, which: int
) -> None:
    """To the error of 4 bits: this is why a head need not be made from the checkpoint."""
    model = ir.load(bundles[which] / f"tail.{GRAPH}")
    assert use_four_bits(model, HEAD, 32) == 1
    scales = model.graph.initializers[f"{HEAD}.int4.scale"].const_value
    assert scales is not None
    with open_checkpoint(tiny_checkpoint) as source:
        floats = np.asarray(source.read(HEAD), np.float32).T
    errors = [
        np.sqrt(np.mean(np.square(codes * np.repeat(scale.astype(np.float32), 32, axis=0) - floats)))
        for codes, scale in (head_of(four_bits), (made(model), scales.numpy()))
    ]
    assert errors[1] < 1.01 * errors[0]


def test_a_head_in_4_bits_stays(four_bits: Path) -> None:
    assert use_four_bits(ir.load(four_bits / f"tail.{GRAPH}"), HEAD, 32) == 0
