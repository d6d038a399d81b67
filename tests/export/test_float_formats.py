"""fp8 and nvfp4: the numbers, the files that hold them, and what graphs make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from sdrpn.bundle import open_bundle
from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.float_formats import Float4, Float8, matrix_factor
from tests.export.graph_runner import GraphRunner


def matrix(outputs: int = 70, inputs: int = 64) -> Any:
    return (np.random.default_rng(0).standard_normal((outputs, inputs)) * 0.05).astype(np.float32)


class TestNumbers:
    def test_fp8_keeps_three_bits_behind_the_first(self) -> None:
        weights = matrix()
        codes, scales = Float8().quantize(weights)
        assert codes.dtype == ml_dtypes.float8_e4m3fn
        assert scales.dtype == np.float16
        assert scales.shape == (70,)
        found = Float8().dequantized(codes, scales)
        normal = np.abs(weights) > 2.0**-6 * scales.astype(np.float32)[:, None]
        assert (np.abs(found - weights)[normal] <= 2.0**-4 * 1.001 * np.abs(weights)[normal]).all()

    @pytest.mark.parametrize("value", [0.0, 1e-9, 448.0, 60000.0])
    def test_fp8_of_constants(self, value: float) -> None:
        found = Float8().dequantized(*Float8().quantize(np.full((3, 32), value, np.float32)))
        np.testing.assert_allclose(found, value, rtol=2e-3, atol=1e-7)

    def test_nvfp4_is_within_half_a_step(self) -> None:
        weights = matrix()
        factor = matrix_factor([weights])
        codes, scales = Float4().quantize(weights, factor)
        assert (codes.dtype, scales.dtype) == (ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn)
        assert scales.shape == (70, 64 // 16)
        found = Float4().dequantized(codes, scales, factor)
        steps = np.repeat(scales.astype(np.float32) * factor, 16, axis=1)
        # The largest numbers are 4 and 6; a scale in 8 bits may be a sixteenth too small for the largest of its block.
        assert (np.abs(found - weights) <= 1.0 * steps + 0.07 * np.abs(weights)).all()

    def test_the_factor_lets_the_largest_scale_fit(self) -> None:
        for size in (1e-6, 0.03, 1.0, 500.0):
            factor = matrix_factor([np.array([[size]], np.float32), np.array([[size / 3]], np.float32)])
            assert float(np.float16(factor)) == factor
            assert size / (6 * factor) <= 448 or factor == 2.0**-24
        assert matrix_factor([np.zeros((2, 2), np.float32)]) == 1.0

    def test_blocks_that_do_not_divide(self) -> None:
        with pytest.raises(
            BadInput, match="a matrix has 40 inputs, which blocks of 16 do not divide; export it in fp8"
        ):
            Float4().quantize(matrix()[:, :40], 1.0)


class TestOptions:
    def test_a_type_that_a_dialect_does_not_have(self) -> None:
        with pytest.raises(BadInput, match="precision nvfp4 is unknown to the dialect primitive"):
            ExportOptions("nvfp4", "primitive")

    def test_there_is_one_variant_for_gpus(self) -> None:
        assert list(ExportOptions("fp8").variants) == ["fused-fp8"]
        assert list(ExportOptions("fp8", "primitive").variants) == ["primitive-fp8"]

    def test_the_vision_tower_is_never_below_8_bits(self) -> None:
        options = ExportOptions("nvfp4", keep=())
        assert [type(options.form(part)) for part in ("vision", "layers.0", "rpn")] == [Float8, Float4, Float4]

    def test_a_calibration_without_a_use(self) -> None:
        with pytest.raises(BadInput, match="a calibration is for the method gptq and for precision fp8"):
            ExportOptions("nvfp4", calibration="ab")


def stored(bundle: Path, name: str, graph: str, variant: str) -> Any:
    """A tensor as the graph finds it."""
    model = ir.load(bundle / f"{graph}.{variant}.onnx")
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("floats") / "bundle"
    for precision in ("fp16", "fp8", "nvfp4"):
        export_bundle(tiny_checkpoint, path, ExportOptions(precision))
    return path


def test_files_hold_the_numbers_of_the_formulas(bundle: Path, tiny_checkpoint: Path) -> None:
    name = "llm.layers.0.attention.o.weight"
    with open_checkpoint(tiny_checkpoint) as checkpoint:
        exact = np.array(checkpoint.read(name), np.float32)
    eight = [stored(bundle, f"{name}{part}", "trunk", "fused-fp8") for part in ("", ".scale")]
    for found, expected in zip((eight[0].T, eight[1]), Float8().quantize(exact), strict=True):
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    factor = float(stored(bundle, f"{name}.factor", "trunk", "fused-nvfp4"))
    assert factor == matrix_factor([exact])
    four = [stored(bundle, f"{name}{part}", "trunk", "fused-nvfp4") for part in ("", ".scale")]
    for found, expected in zip((four[0].T, four[1].T), Float4().quantize(exact, factor), strict=True):
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


def test_fp8_graphs_compute_with_these_numbers(bundle: Path) -> None:
    """In ONNX Runtime, against the fp16 graphs: 4 bits of mantissa are 3 % a weight."""
    runners = [GraphRunner(bundle, f"fused-{precision}") for precision in ("fp16", "fp8")]
    x = np.random.default_rng(0).standard_normal((1, 9, 64)).astype(np.float32)
    exact, found = (one.run("trunk", x, one.caches("trunk", 16), 0)["tap"] for one in runners)
    share = float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))
    assert 0.001 < share < 0.06, share


def test_one_product_in_nvfp4(bundle: Path) -> None:
    """ONNX Runtime has no such DequantizeLinear; ONNX's own reference has."""
    name = "llm.layers.0.attention.o.weight"
    parts = [stored(bundle, f"{name}{part}", "trunk", "fused-nvfp4") for part in ("", ".scale", ".factor")]
    inputs, outputs = parts[0].shape
    x = np.random.default_rng(0).standard_normal((3, inputs)).astype(np.float16)
    expected = x.astype(np.float32) @ Float4().dequantized(parts[0].T, parts[1].T, float(parts[2])).T
    (found,) = ReferenceEvaluator(only_the_product(bundle, name)).run(None, {"x": x})
    assert isinstance(found, np.ndarray)
    assert found.shape == (3, outputs)
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=2e-3 * np.abs(expected).max())


def only_the_product(bundle: Path, name: str) -> onnx.ModelProto:
    """x @ weight, with the nodes that the exported graph has for the weight."""
    path = bundle / "trunk.fused-nvfp4.onnx"
    model = onnx.load(path)  # with its weights
    product = next(
        node for node in model.graph.node if node.op_type == "MatMul" and node.output[0].split(".")[-1] == "o"
    )
    by_output: dict[Any, Any] = {output: node for node in model.graph.node for output in node.output}
    weight = by_output[product.input[1]]
    scales = by_output[weight.input[1]]
    kept = {weight.input[0], *scales.input}
    final = onnx.helper.make_node("MatMul", ["x", weight.output[0]], ["y"])
    graph = onnx.helper.make_graph(
        [scales, weight, final],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["rows", "inputs"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["rows", "outputs"])],
        [tensor for tensor in model.graph.initializer if tensor.name in kept],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


class Largest:
    """A calibration that knows no model."""

    digest = "abc"

    def second_moment(self, name: str, /) -> Any:
        raise AssertionError(name)

    def largest(self, name: str, /) -> float:
        return 44.8


def test_calibrated_inputs_are_rounded_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions("fp8", calibration="abc")
    export_bundle(tiny_checkpoint, tmp_path / "bundle", options, calibration=Largest())
    model = ir.load(tmp_path / "bundle" / "trunk.fused-fp8.onnx")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == kinds.count("MatMul") == 2 * 4
    step = next(node for node in model.graph if node.op_type == "QuantizeLinear").inputs[1]
    assert step is not None
    assert step.const_value is not None
    np.testing.assert_allclose(step.const_value.numpy(), 0.1, rtol=1e-3)
    vision = ir.load(tmp_path / "bundle" / "vision.fused-fp8.onnx")
    assert "QuantizeLinear" not in [node.op_type for node in vision.graph]
    recorded = open_bundle(tmp_path / "bundle").variant("fused-fp8").quantization
    assert recorded == {"format": "fp8", "inputs": "fp8", "calibration": "abc", "keep": ["lm_head", "rpn", "vision"]}
    runner = GraphRunner(tmp_path / "bundle", "fused-fp8")
    x = np.random.default_rng(0).standard_normal((1, 9, 64)).astype(np.float32)
    assert np.isfinite(runner.run("trunk", x, runner.caches("trunk", 16), 0)["tap"]).all()


def test_manifests_are_json(bundle: Path) -> None:
    assert json.loads((bundle / "manifest.json").read_text())["variants"]["fused-nvfp4"]["quantization"] == {
        "format": "nvfp4",
        "keep": ["lm_head", "rpn", "vision"],
    }
