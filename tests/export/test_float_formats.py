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

from sdrpn.bundle.bundle import open_bundle
from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.float_formats import Float4, Float8, largest_of
from tests.export.calibration import Largest
from tests.export.graph_runner import GraphRunner


def matrix(outputs: int = 70, inputs: int = 64) -> Any:
    return (np.random.default_rng(0).standard_normal((outputs, inputs)) * 0.05).astype(np.float32)


class TestNumbers:
    def test_fp8_keeps_three_bits_behind_the_first(self) -> None:
        weights = matrix()
        factor = Float8().factor(largest_of([weights]))
        (codes,) = Float8().quantize(weights, factor)
        assert codes.dtype == ml_dtypes.float8_e4m3fn
        found = Float8().dequantized(codes, factor)
        normal = np.abs(weights) > 2.0**-6 * factor
        assert normal.mean() > 0.99
        assert (np.abs(found - weights)[normal] <= 2.0**-4 * np.abs(weights)[normal]).all()

    @pytest.mark.parametrize("value", [0.0, 1e-9, 448.0, 60000.0])
    def test_fp8_of_constants(self, value: float) -> None:
        factor = Float8().factor(value)
        (codes,) = Float8().quantize(np.full((3, 32), value, np.float32), factor)
        np.testing.assert_allclose(Float8().dequantized(codes, factor), value, rtol=2.0**-4, atol=1e-7)

    def test_nvfp4_is_within_half_a_step(self) -> None:
        weights = matrix()
        factor = Float4().factor(largest_of([weights]))
        codes, scales = Float4().quantize(weights, factor)
        assert (codes.dtype, scales.dtype) == (ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn)
        assert scales.shape == (70, 64 // 16)
        found = Float4().dequantized(codes, scales, factor)
        steps = np.repeat(scales.astype(np.float32) * factor, 16, axis=1)
        # The largest numbers are 4 and 6; a scale in 8 bits may be a sixteenth too small for the largest of its block.
        assert (np.abs(found - weights) <= 1.0 * steps + 0.07 * np.abs(weights)).all()

    @pytest.mark.parametrize(("form", "most"), [(Float8(), 448.0), (Float4(), 6 * 448.0)])
    def test_factors_are_the_least_power_of_two_with_which_the_largest_fits(
        self, form: Float8 | Float4, most: float
    ) -> None:
        for size in (1e-3, 0.03, 1.0, 448.0, 449.0, 2688.0, 60000.0):
            factor = form.factor(size)
            assert np.log2(factor).is_integer()
            assert factor * most / 2 < size <= factor * most
        assert form.factor(0.0) == form.factor(float("nan")) == 1.0
        assert form.factor(1e-9) == 2.0**-24  # fp16 has nothing smaller

    def test_the_largest_of_several_matrices(self) -> None:
        assert largest_of([np.array([[-3.0, 2.0]]), np.zeros((2, 0)), np.array([[1.5]])]) == 3.0
        assert largest_of([]) == 0.0

    def test_blocks_that_do_not_divide(self) -> None:
        with pytest.raises(
            BadInput, match="a matrix has 40 inputs, which blocks of 16 do not divide; export it in fp8"
        ):
            Float4().quantize(matrix()[:, :40], 1.0)


class TestOptions:
    def test_a_type_that_a_dialect_does_not_have(self) -> None:
        with pytest.raises(BadInput, match="precision nvfp4 is not supported by the dialect primitive"):
            ExportOptions("nvfp4", "primitive", calibration="ab")

    def test_there_is_one_variant_for_gpus(self) -> None:
        assert list(ExportOptions("fp8").variants) == ["fused-fp8"]
        assert list(ExportOptions("fp8", "primitive").variants) == ["primitive-fp8"]

    def test_the_vision_tower_is_never_below_8_bits(self) -> None:
        options = ExportOptions("nvfp4", keep=(), calibration="ab")
        assert [type(options.form(part)) for part in ("vision", "layers.0", "rpn")] == [Float8, Float4, Float4]

    def test_a_calibration_without_a_use(self) -> None:
        with pytest.raises(BadInput, match="a calibration is for the method gptq and for precisions fp8 and nvfp4"):
            ExportOptions("int4", calibration="ab")

    @pytest.mark.parametrize("dialect", ["fused", "primitive"])
    def test_no_engine_has_nvfp4_and_caches_in_8_bits(self, dialect: Any) -> None:
        with pytest.raises(BadInput, match=r"caches in int8 do not go with precision nvfp4: .*; use precision fp8, or"):
            ExportOptions("nvfp4", dialect, kv_cache="int8", calibration="ab")

    def test_nvfp4_without_a_calibration(self) -> None:
        with pytest.raises(BadInput, match=r"precision nvfp4 needs a calibration, since .*; name questions and images"):
            ExportOptions("nvfp4")


def stored(bundle: Path, name: str, graph: str, variant: str) -> Any:
    """A tensor as the graph finds it."""
    model = ir.load(bundle / f"{graph}.{variant}.onnx")
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("floats") / "bundle"
    for precision in ("fp16", "fp8"):
        export_bundle(tiny_checkpoint, path, ExportOptions(precision))
    export_bundle(tiny_checkpoint, path, ExportOptions("nvfp4", calibration="abc"), calibration=Largest())
    return path


def test_files_hold_the_numbers_of_the_formulas(bundle: Path, tiny_checkpoint: Path) -> None:
    name = "llm.layers.0.attention.o.weight"
    with open_checkpoint(tiny_checkpoint) as checkpoint:
        exact = np.array(checkpoint.read(name), np.float32)
    factor = float(stored(bundle, f"{name}.factor", "trunk", "fused-fp8"))
    assert factor == Float8().factor(largest_of([exact]))
    codes = stored(bundle, name, "trunk", "fused-fp8")
    np.testing.assert_array_equal(codes.T.astype(np.float32), Float8().quantize(exact, factor)[0].astype(np.float32))
    factor = float(stored(bundle, f"{name}.factor", "trunk", "fused-nvfp4"))
    assert factor == Float4().factor(largest_of([exact]))
    four = [stored(bundle, f"{name}{part}", "trunk", "fused-nvfp4") for part in ("", ".scale")]
    for found, expected in zip((four[0].T, four[1].T), Float4().quantize(exact, factor), strict=True):
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


def test_fp8_graphs_compute_with_these_numbers(bundle: Path) -> None:
    """In ONNX Runtime, against the fp16 graphs: 4 bits of mantissa are 3 % per weight."""
    runners = [GraphRunner(bundle, f"fused-{precision}") for precision in ("fp16", "fp8")]
    x = np.random.default_rng(0).standard_normal((1, 9, 64)).astype(np.float32)
    exact, found = (runner.run("trunk", x, runner.caches("trunk", 16), 0)["tap"] for runner in runners)
    share = float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))
    assert 0.001 < share < 0.06, share


def rounded_to_nvfp4(x: Any, factor: float) -> Any:
    """x (rows, K) as the graph should see it: rows are what a matrix has as outputs."""
    return Float4().dequantized(*Float4().quantize(x, factor), factor)


def test_one_product_in_nvfp4(bundle: Path) -> None:
    """By what the model itself says the operator means, in ONNX's own reference; ONNX Runtime has no such types."""
    name = "llm.layers.0.attention.o.weight"
    parts = [stored(bundle, f"{name}{part}", "trunk", "fused-nvfp4") for part in ("", ".scale", ".factor")]
    inputs, outputs = parts[0].shape
    x = (np.random.default_rng(0).standard_normal((3, inputs)) * 9).astype(np.float16)
    x[1] = 0
    weight = Float4().dequantized(parts[0].T, parts[1].T, float(parts[2]))
    expected = rounded_to_nvfp4(x.astype(np.float32), Float4().factor(Largest().largest(name))) @ weight.T
    product = only_the_product(bundle, name)
    onnx.checker.check_model(product)
    (found,) = ReferenceEvaluator(product).run(None, {"x": x[None]})
    assert isinstance(found, np.ndarray)
    assert found.shape == (1, 3, outputs)
    np.testing.assert_allclose(found[0].astype(np.float32), expected, atol=2e-3 * np.abs(expected).max())


def only_the_product(bundle: Path, name: str) -> onnx.ModelProto:
    """x (1,S,K) @ weight, with the nodes that the exported graph has for the weight and its inputs."""
    model = onnx.load(bundle / "trunk.fused-nvfp4.onnx")  # with its weights
    by_output = {output: node for node in model.graph.node for output in node.output}
    product = next(
        node for node in model.graph.node if node.op_type == "MatMul" and node.output[0].split(".")[-1] == "o"
    )
    quantize = by_output[by_output[product.input[0]].input[0]]
    wanted, needed = [product], set(product.input)
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and node.output[0] != quantize.input[0]:
            wanted.insert(0, node)
            needed.update(node.input)
    given, result = quantize.input[0], product.output[0]
    graph = onnx.helper.make_graph(
        wanted,
        "product",
        [onnx.helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT16, [1, "rows", "inputs"])],
        [onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT16, [1, "rows", "outputs"])],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    for node in graph.node:
        node.input[:] = ["x" if entry == given else entry for entry in node.input]
    graph.input[0].name = "x"
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.functions.extend(model.functions)
    return made


def test_calibrated_inputs_are_rounded_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions("fp8", calibration="abc")
    export_bundle(tiny_checkpoint, tmp_path / "bundle", options, calibration=Largest())
    model = ir.load(tmp_path / "bundle" / "trunk.fused-fp8.onnx")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == kinds.count("MatMul") == 2 * 4
    step = next(node for node in model.graph if node.op_type == "QuantizeLinear").inputs[1]
    assert step is not None
    assert step.const_value is not None
    assert step.const_value.numpy() == 0.125  # 448 times as much is 56, the next above 44.8
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
        "inputs": "nvfp4",
        "calibration": "abc",
        "keep": ["lm_head", "rpn", "vision"],
    }
