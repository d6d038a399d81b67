"""Simulated graphs round where the originals do: against NumPy, and against ONNX's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from sdrpn.bundle.bundle import open_bundle
from sdrpn.compare.simulation import runnable_bundle, simulated_graph
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.dynamic_quantize import dynamic_quantize_function
from sdrpn.export.float_formats import Float4
from tests.export.calibration import Largest
from tests.export.graph_runner import GraphRunner

K, N = 32, 5
RNG = np.random.default_rng(0)


def bf16(array: Any) -> Any:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def run(model: onnx.ModelProto, x: Any) -> Any:
    """In ONNX Runtime."""
    content = simulated_graph(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def model_of(nodes: list[Any], weights: list[Any], x: int, y: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", x, [1, "rows", K])],
        [helper.make_tensor_value_info("y", y, [1, "rows", N])],
        weights,
    )
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("trt", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=11)


def raw(name: str, dtype: int, array: Any) -> onnx.TensorProto:
    return helper.make_tensor(name, dtype, array.shape, array.tobytes(), raw=True)


def test_a_product_in_bf16_is_rounded_on_every_side() -> None:
    weight = RNG.standard_normal((K, N)).astype(ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["half", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, [raw("weight", TensorProto.BFLOAT16, weight)], TensorProto.FLOAT, TensorProto.FLOAT)
    x = RNG.standard_normal((1, 7, K)).astype(np.float32)
    exact = bf16(x) @ weight.astype(np.float32)
    found = run(model, x)
    # Sums in another order may lie on the other side of a tie.
    assert (found == bf16(exact)).mean() > 0.9
    np.testing.assert_allclose(found, exact, rtol=2.0**-7, atol=1e-6)
    np.testing.assert_array_equal(bf16(found), found)


def test_inputs_and_outputs_in_bf16_become_float32() -> None:
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
    model = simulated_graph(model_of(nodes, [], TensorProto.BFLOAT16, TensorProto.BFLOAT16))
    assert [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)] == [1, 1]


def nvfp4_product(weight: Any, factor: float, input_factor: float) -> onnx.ModelProto:
    codes, scales = Float4().quantize(weight, factor)
    nibbles = np.ascontiguousarray(codes.T).view(np.uint8).reshape(-1)
    packed = (nibbles[0::2] & 15) | (nibbles[1::2] << 4)
    function = dynamic_quantize_function(24)
    nodes = [
        helper.make_node(
            *(function.name, ["x", "g"], ["codes", "scales"]), domain="trt", axis=-1, block_size=16, scale_type=17
        ),
        helper.make_node("DequantizeLinear", ["scales", "g"], ["steps"]),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["rounded"], axis=-1, block_size=16),
        helper.make_node("DequantizeLinear", ["s", "f"], ["units"]),
        helper.make_node("DequantizeLinear", ["w", "units"], ["weight"], axis=0, block_size=16),
        helper.make_node("MatMul", ["rounded", "weight"], ["y"]),
    ]
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT4E2M1, (K, N), packed.astype(np.uint8).tobytes(), raw=True),
        raw("s", TensorProto.FLOAT8E4M3FN, np.ascontiguousarray(scales.T)),
        raw("f", TensorProto.FLOAT16, np.array(factor, np.float16)),
        raw("g", TensorProto.FLOAT16, np.array(input_factor, np.float16)),
    ]
    model = model_of(nodes, weights, TensorProto.FLOAT16, TensorProto.FLOAT16)
    model.functions.append(ir.to_proto(function))
    return model


def test_a_product_in_nvfp4_is_that_of_the_reference() -> None:
    weight = RNG.standard_normal((N, K)).astype(np.float32)
    model = nvfp4_product(weight, 2.0**-10, 2.0**-8)
    x = (RNG.standard_normal((1, 9, K)) * 3).astype(np.float16)
    x[0, 2] = 0
    x[0, 3] = 1e4  # beyond what the largest scale holds: saturates
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert isinstance(expected, np.ndarray)
    scale = np.abs(expected.astype(np.float32)).max(axis=-1, keepdims=True) + 1e-6
    difference = np.abs(run(model, x).astype(np.float32) - expected.astype(np.float32)) / scale
    assert difference.max() < 2e-3, difference.max()


def test_every_number_of_4_bits_and_every_tie() -> None:
    """Against the type's own rounding; a 6 in each block makes its scale one."""
    model = nvfp4_product(6 * np.eye(N, K, dtype=np.float32), 2.0**-8, 2.0**-8)
    ties = np.array([0.25, 0.75, 1.25, 1.75], np.float32)
    for values in (ties, np.array([2.5, 3.5, 5.0, 5.5], np.float32), np.array([0.0, 0.5, 3.0, 4.0], np.float32)):
        x = np.zeros((1, 2, K), np.float16)
        x[0, :, 5] = x[0, :, 20] = 6
        x[0, 0, : len(values)], x[0, 1, : len(values)] = values, -values
        found = run(model, x)[0, :, : len(values)].astype(np.float32)
        expected = values.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        np.testing.assert_array_equal(found, [6 * expected, -6 * expected])


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "bundle"
    export_bundle(tiny_checkpoint, path, ExportOptions("bf16"))
    export_bundle(tiny_checkpoint, path, ExportOptions("bf16", "primitive"))
    export_bundle(tiny_checkpoint, path, ExportOptions("fp32"))
    export_bundle(tiny_checkpoint, path, ExportOptions("nvfp4", calibration="abc"), calibration=Largest())
    return path


class TestBundles:
    @pytest.mark.parametrize(
        ("name", "least", "most"),
        [("fused-bf16", 1e-4, 1e-2), ("primitive-bf16", 1e-4, 1e-2), ("fused-nvfp4", 1e-2, 0.3)],
    )
    def test_they_run_and_are_rounded(self, bundle: Path, name: str, least: float, most: float) -> None:
        x = RNG.standard_normal((1, 9, 64)).astype(np.float32)
        exact = GraphRunner(bundle, "fused-fp32")
        expected = exact.run("trunk", x, exact.caches("trunk", 16), 0)["tap"]
        opened = open_bundle(bundle)
        with runnable_bundle(opened, opened.variant(name)) as simulated:
            runner = GraphRunner(simulated.path, name)
            found = runner.run("trunk", x, runner.caches("trunk", 16), 0)["tap"]
        share = float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
        assert least < share < most, share

    def test_nothing_is_left_behind_and_the_bundle_is_as_it_was(self, bundle: Path) -> None:
        before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
        opened = open_bundle(bundle)
        with runnable_bundle(opened, opened.variant("fused-bf16")) as simulated:
            simulated.verify(simulated.variant().files)
            assert simulated.path.parent == bundle.parent
        assert not simulated.path.exists()
        assert before == {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
        opened.verify(opened.manifest.files)

    def test_what_runs_by_itself_is_not_touched(self, bundle: Path) -> None:
        opened = open_bundle(bundle)
        with runnable_bundle(opened, opened.variant("fused-fp32")) as simulated:
            assert simulated is opened


def test_a_cache_of_another_type_is_not_rounded() -> None:
    """Rows that are put into a cache in 8 bits are codes."""
    graph = helper.make_graph(
        [helper.make_node("TensorScatter", ["cache", "rows", "start"], ["cache_out"], axis=2)],
        "caches",
        [
            helper.make_tensor_value_info("cache", TensorProto.INT8, [1, 1, 4, 2]),
            helper.make_tensor_value_info("rows", TensorProto.INT8, [1, 1, 1, 2]),
            helper.make_tensor_value_info("start", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("cache_out", TensorProto.INT8, [1, 1, 4, 2])],
        [raw("bf16", TensorProto.BFLOAT16, np.zeros(1, ml_dtypes.bfloat16))],
    )
    model = simulated_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11))
    assert [node.op_type for node in model.graph.node] == ["Cast", "TensorScatter"]  # the weight, and it as it was
    assert list(model.graph.node[1].input) == ["cache", "rows", "start"]
