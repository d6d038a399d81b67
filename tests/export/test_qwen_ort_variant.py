"""ONNX Runtime's variants of Qwen's graphs give what the standard graphs give, and take less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.ort_variant import group_query_graph
from sdrpn.export.ort_vision import multi_head_graph
from sdrpn.families.qwen.vision_spec import qwen_vision_of
from sdrpn.families.registry import family_of
from sdrpn.method.grids import cell_count
from sdrpn.workflows.graph_optimization import optimize_bundle
from tests.export.qwen_graphs import QwenGraphs, close
from tests.export.test_qwen_graphs import AFTER, BEFORE, prompt_rows
from tests.families.qwen.models import KINDS
from tests.families.qwen.second_pass import first_positions
from tests.tolerances import SAME_MATH_ABS

EVERY = ("sd-rpn", "q-zoom-gate", "q-zoom-3", "bare-3")


class VariantGraphs(QwenGraphs):
    """The same graphs with their attentions replaced."""

    def model(self, name: str) -> bytes:
        path = self.bundle.file(self.graph(name).file)
        found = multi_head_graph(path) if name == "vision" else group_query_graph(path)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ort")


def sides(kind: str, precision: str, folder: Path) -> tuple[QwenGraphs, VariantGraphs]:
    bundle, checkpoint = folder / f"{kind}-{precision}", folder / kind
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, KINDS[kind], roi_gain=3.0)
    if not bundle.exists():
        export_bundle(checkpoint, bundle, ExportOptions(precision))  # type: ignore[arg-type]
    variant = "fused-int4-cpu" if precision == "int4" else "fused-fp32"
    return QwenGraphs(bundle, variant, checkpoint), VariantGraphs(bundle, variant, checkpoint)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("kind", EVERY)
def test_every_graph_gives_the_same(kind: str, precision: str, folder: Path) -> None:
    standard, variant = sides(kind, precision, folder)
    spec = standard.spec
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 310, 3), np.uint8))
    inputs, hw = family_of(spec).first_look(picture, spec.vision), spec.vision.grid(picture.size).hw
    look, other = standard.look(inputs), variant.look(inputs)
    for found, expected in zip((other.embeds, *other.deepstack), (look.embeds, *look.deepstack), strict=True):
        close(found, expected, SAME_MATH_ABS, "vision")
    ids, image = prompt_rows(BEFORE, cell_count(hw), AFTER)
    positions, values = first_positions(len(BEFORE), hw, len(AFTER)).rows, standard.rows_of(ids, image, [look])
    cut = len(ids) - len(AFTER)
    taps = [in_two_runs(graphs, "trunk", values, positions, cut)["tap"] for graphs in (standard, variant)]
    close(taps[1], taps[0], SAME_MATH_ABS, "tap")
    tap = {"tap": standard.pass_through("trunk", values, positions, standard.spare("trunk", len(ids)))["tap"]}
    names = [name for name in ("gate", "tail") if name in standard.variant.graphs]
    for name in names:
        results = [in_two_runs(graphs, name, tap, positions, cut) for graphs in (standard, variant)]
        for output, expected in results[0].items():
            close(results[1][output], expected, SAME_MATH_ABS, f"{output} of {name}")
    if spec.rpn is not None:
        maps = [graphs.map_of(tap["tap"], positions, (cut, len(ids)))[0] for graphs in (standard, variant)]
        for output, expected in maps[0].items():
            close(maps[1][output], expected, SAME_MATH_ABS, output)


def in_two_runs(graphs: QwenGraphs, name: str, values: Any, positions: Any, cut: int) -> Any:
    """The results of the second run, which reads what the first wrote."""
    caches, count = graphs.spare(name, positions.shape[1]), positions.shape[1]
    graphs.pass_through(name, {key: value[:cut] for key, value in values.items()}, positions[:, :cut], caches)
    rest = {key: value[cut:count] for key, value in values.items()}
    return graphs.pass_through(name, rest, positions[:, cut:], caches, cut)


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_replaced(kind: str, folder: Path) -> None:
    standard, variant = sides(kind, "fp32", folder)
    counts = {}
    for name in standard.variant.graphs:
        nodes = [node.op_type for node in onnx.load_from_string(variant.model(name)).graph.node]
        counts[name] = [nodes.count(each) for each in ("Attention", "GroupQueryAttention", "MultiHeadAttention")]
    expected = {"vision": [0, 0, 4], "trunk": [0, 3, 0], "tail": [0, 3, 0]}
    expected |= {"rpn": [0, 1, 0]} if standard.spec.rpn is not None else {}
    # The gate's last layer has one query, which the operator does not take.
    expected |= {"gate": [1, 1, 0]} if "gate" in counts else {}
    assert counts == expected


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_parts_of_a_product_are_saved_by_themselves(precision: str, folder: Path) -> None:
    """For either library, whether the tower is in fp32 or, as in a bundle of 4 bits, in fp16."""
    openvino = pytest.importorskip("openvino")
    sides("q-zoom-gate", precision, folder)
    layers = qwen_vision_of(KINDS["q-zoom-gate"]).layers
    for library in ("onnxruntime", "openvino"):
        found = optimize_bundle(folder / f"q-zoom-gate-{precision}", library=library, threads=1)
        path = found.folder / found.manifest.graphs["vision"]
        if library == "onnxruntime":
            nodes = onnx.load(path, load_external_data=False).graph.node
            splits = [len(node.output) for node in nodes if node.op_type == "Split"]
            products = sum(node.op_type in ("MatMul", "FusedMatMul", "Gemm") for node in nodes)
        else:
            steps = openvino.Core().read_model(path).get_ordered_ops()
            splits = [step.get_output_size() for step in steps if step.get_type_name() in ("Split", "VariadicSplit")]
            # Of activations by stored matrices: the rest are within attention.
            products = sum(
                step.get_type_name() == "MatMul" and step.input_value(1).get_node().get_type_name() == "Constant"
                for step in steps
            )
        assert products == 1 + 5 * layers + 2, f"{library}: queries, out, gate, up and down of each layer"
        assert len(splits) <= 3 * layers, f"{library}: those of attention alone"


@pytest.mark.parametrize("kind", ["q-zoom-gate", "q-zoom-3"])
def test_graphs_are_saved_for_this_machine(kind: str, folder: Path) -> None:
    sides(kind, "fp32", folder)
    found = optimize_bundle(folder / f"{kind}-fp32", threads=1)
    assert found.manifest.attention == "group-query"
    assert {path.name for path in found.folder.iterdir()} >= {"vision.onnx", "gate.onnx", "rpn.onnx"}
