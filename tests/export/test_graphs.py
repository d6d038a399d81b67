"""The ONNX files as files: what a parser will meet in them, and that the manifest tells the truth about it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, defs, helper, shape_inference

from sdrpn.bundle.bundle import Bundle, Variant, open_bundle
from sdrpn.bundle.cache_codes import row_codes
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec, RpnSpec

VARIANTS = (
    "fused-fp32",
    "fused-fp16",
    "primitive-fp32",
    "primitive-fp16",
    "fused-fp32-kv-int8",
    "primitive-fp16-kv-fp8",
)
GRAPHS = ("vision", "trunk", "rpn", "tail")
# What TensorRT before 10.15 has no parser for.
LLM_OPERATORS = {"Attention", "TensorScatter", "RMSNormalization", "RotaryEmbedding"}
LARGEST_INSIDE_BYTES = 1024


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All of them."""
    path = tmp_path_factory.mktemp("graphs") / "bundle"
    for name in VARIANTS:
        export_bundle(tiny_checkpoint, path, options(name))
    return open_bundle(path)


def options(variant: str) -> ExportOptions:
    dialect, precision, *cache = variant.split("-")
    return ExportOptions(precision, dialect, kv_cache=cache[1] if cache else None)  # type: ignore[arg-type]


class Exported:
    """One graph as the manifest has it and as the file has it."""

    def __init__(self, bundle: Bundle, variant: str, name: str) -> None:
        self.variant: Variant = bundle.variant(variant)
        self.info = self.variant.graphs[name]
        self.path = bundle.file(self.info.file)
        self.model = onnx.load(self.path, load_external_data=False)
        self.graph = self.model.graph
        self.nodes = list(self.graph.node)

    def dtypes(self) -> dict[str, int]:
        """The type of every value, inferred."""
        inferred = shape_inference.infer_shapes(self.model, strict_mode=True).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        found = {value.name: value.type.tensor_type.elem_type for value in values}
        return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}

    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.nodes)


@pytest.fixture(params=[f"{graph}.{variant}" for variant in VARIANTS for graph in GRAPHS])
def exported(request: pytest.FixtureRequest, bundle: Bundle) -> Exported:
    graph, variant = request.param.split(".")
    return Exported(bundle, variant, graph)


def test_the_checker_accepts_it_with_its_weights(exported: Exported) -> None:
    onnx.checker.check_model(str(exported.path), full_check=True)


def test_only_operators_of_the_dialects_opset(exported: Exported) -> None:
    (imported,) = exported.model.opset_import
    assert (imported.domain, imported.version) == ("", exported.variant.opset)
    for node in exported.nodes:
        assert node.domain == ""
        assert defs.has(node.op_type, max_inclusive_version=imported.version, domain=""), node.op_type
    if exported.variant.dialect == "primitive":
        assert imported.version <= 20
        assert not LLM_OPERATORS & exported.operators().keys()
        # In opsets up to 20 the operators themselves may be old, too.
        assert all(defs.get_schema(node.op_type, 20).since_version <= 20 for node in exported.nodes)


def test_the_ir_version_is_no_newer_than_the_opset(exported: Exported) -> None:
    assert exported.model.ir_version <= helper.find_min_ir_version_for(exported.model.opset_import)


def test_nothing_is_computed_for_nobody(exported: Exported) -> None:
    read = {name for node in exported.nodes for name in node.input} | {value.name for value in exported.graph.output}
    assert [node.name for node in exported.nodes if not read & set(node.output)] == []
    assert [tensor.name for tensor in exported.graph.initializer if tensor.name not in read] == []


def test_names_are_unique_and_say_where_they_belong(exported: Exported) -> None:
    nodes = [node.name for node in exported.nodes]
    values = [name for node in exported.nodes for name in node.output]
    values += [value.name for value in (*exported.graph.input, *exported.graph.initializer)]
    for names in (nodes, values):
        assert [name for name, count in Counter(names).items() if count > 1 or not name] == []
    expected = {
        "vision": ["vision.layers.0", "vision.layers.1", "projector"],
        "trunk": ["llm.layers.0", "llm.layers.1"],
        "rpn": ["rpn.layers.0", "rpn.layers.1"],
        "tail": ["llm.layers.2", "llm.layers.3"],
    }
    for prefix in expected[exported.info.name]:
        assert any(name.startswith(prefix) for name in nodes)
        assert any(name.startswith(f"{prefix}.") for name in values)
    assert exported.graph.name == exported.info.name


def test_the_manifest_lists_the_graphs_inputs_and_outputs(exported: Exported) -> None:
    for listed, found in ((exported.info.inputs, exported.graph.input), (exported.info.outputs, exported.graph.output)):
        assert [tensor.name for tensor in listed] == [value.name for value in found]
        for tensor, value in zip(listed, found, strict=True):
            kind = value.type.tensor_type
            assert tensor.dtype == helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            assert tensor.dims == tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)


def test_types_and_shapes_can_be_inferred_for_every_value(exported: Exported) -> None:
    found = exported.dtypes()
    assert {name for node in exported.nodes for name in node.output} <= found.keys()


def test_large_tensors_are_external_and_small_ones_are_not(exported: Exported) -> None:
    for tensor in exported.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] in exported.info.weights
        else:
            assert onnx.numpy_helper.to_array(tensor).nbytes <= LARGEST_INSIDE_BYTES, tensor.name
    external = [t for t in exported.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    used = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    assert used == set(exported.info.weights)


def test_no_form_of_mask_but_the_one_from_positions(exported: Exported) -> None:
    """Some parsers take is_causal from the wrong corner and drop the number of valid keys."""
    for node in exported.nodes:
        assert not {"is_causal", "nonpad_kv_seqlen"} & {attribute.name for attribute in node.attribute}
        if node.op_type == "Attention":
            assert len(node.input) <= 4, "no past_key, past_value, nonpad_kv_seqlen"
            assert len(node.output) == 1, "parsers take no present_key and present_value"
    if exported.info.name != "vision":
        masks = [name for node in exported.nodes for name in node.output if name.rsplit(".", 1)[-1] == "mask"]
        # In `fused` the tail's last layer has one row of queries, and so a mask of its own.
        assert len(masks) == (2 if (exported.info.name, exported.variant.dialect) == ("tail", "fused") else 1)


def test_caches_have_a_symbolic_length_and_the_dialects_outputs(exported: Exported) -> None:
    caches = [tensor for tensor in exported.info.inputs if "cache" in tensor.name]
    outputs = {tensor.name: tensor for tensor in exported.info.outputs}
    names = {"trunk": [0, 1], "tail": [2, 3], "rpn": [0], "vision": []}[exported.info.name]
    parts = ["key", "value"]
    codes = None if exported.info.name == "rpn" else row_codes(exported.variant.kv_cache)
    if codes is not None:
        parts += ["key_scale", "value_scale"]
    expected = {f"{part}_cache.{layer}" for layer in names for part in parts}
    if exported.info.name == "rpn":
        expected.add("score_key_cache")
    assert {tensor.name for tensor in caches} == expected
    for cache in caches:
        precision = "float32" if exported.variant.precision == "fp32" else "float16"
        width = 1 if "_scale_cache" in cache.name else 16
        if codes is not None and width > 1:
            precision = codes.dtype
        assert cache.dims == ("batch", 4, "cache_length", width)
        assert cache.dtype == precision
        if exported.variant.dialect == "fused":
            assert dataclasses.replace(cache, name=f"{cache.name}_out", of=cache.name) == outputs[f"{cache.name}_out"]
        else:
            rows = outputs[f"{cache.name}_rows"]
            assert rows.dims == ("batch", 4, "sequence", width)
            assert rows.dtype == precision
    assert len(outputs) == len(caches) + (2 if "new_scores" in outputs else 1)


def test_a_cache_is_scattered_into_or_only_read(exported: Exported) -> None:
    """TensorScatter is the only operator whose output may share its input's memory."""
    for cache in (tensor.name for tensor in exported.info.inputs if "cache" in tensor.name):
        readers = [node for node in exported.nodes if cache in node.input and node.op_type != "Shape"]
        if exported.variant.dialect == "fused":
            assert [(node.op_type, list(node.output)) for node in readers] == [("TensorScatter", [f"{cache}_out"])]
        else:
            # Keys before the new ones; the scores read the cache by itself, and codes become numbers first.
            coded = exported.variant.kv_cache is not None and "scale" not in cache and exported.info.name != "rpn"
            reader = "Transpose" if cache == "score_key_cache" else "DequantizeLinear" if coded else "Concat"
            assert [node.op_type for node in readers] == [reader]


def test_hidden_states_and_results_are_fp32_outside(exported: Exported) -> None:
    outside = {"pixel_values", "inputs_embeds", "tap", "logits", "scores", "new_scores", "image_embeds"}
    tensors = [t for t in (*exported.info.inputs, *exported.info.outputs) if t.name in outside]
    assert tensors
    assert {tensor.dtype for tensor in tensors} == {"float32"}


def test_residual_stream_and_norms_are_fp32_and_products_in_the_graphs_precision(exported: Exported) -> None:
    dtypes = exported.dtypes()
    precision = TensorProto.FLOAT if exported.variant.precision == "fp32" else TensorProto.FLOAT16
    for node in exported.nodes:
        if node.op_type in ("RMSNormalization", "LayerNormalization", "ReduceMean", "Sqrt"):
            assert {dtypes[name] for name in (node.input[0], *node.output)} == {TensorProto.FLOAT}, node.name
        scatters_codes = exported.variant.kv_cache is not None and node.op_type == "TensorScatter"
        if not scatters_codes and node.op_type in ("MatMul", "Conv", "Attention", "RotaryEmbedding", "TensorScatter"):
            assert {dtypes[name] for name in (node.input[0], *node.output)} == {precision}, node.name
        # The result of every layer is a sum on the residual stream, and so is what it was added to.
        if node.op_type == "Add" and re.search(r"\.hidden(_\d+)?$|^tap$", node.output[0]):
            assert {dtypes[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
    sums = list(residual_sums(exported))
    layers = {"vision": 2, "trunk": 2, "rpn": 1, "tail": 2}[exported.info.name]
    assert len(sums) == 2 * layers
    assert {dtypes[name] for node in sums for name in (*node.input, *node.output)} == {TensorProto.FLOAT}


def residual_sums(exported: Exported) -> Iterator[onnx.NodeProto]:
    """Follow the stream back from the last layer's output: every Add on it, whatever the type."""
    made_by = {name: node for node in exported.nodes for name in node.output}
    ends = [name for name in made_by if name.endswith(".hidden") or name == "tap"]
    found: dict[str, onnx.NodeProto] = {}
    while ends:
        node = made_by.get(ends.pop())
        if node is not None and node.op_type == "Add" and node.output[0] not in found and "layers" in node.name:
            found[node.output[0]] = node
            ends.append(node.input[0])
    yield from found.values()


def test_queries_and_keys_are_turned_apart_in_floats_and_as_one_for_engines(exported: Exported) -> None:
    """Two operators per layer cost ONNX Runtime less than a copy of both; for TensorRT-RTX each is a kernel."""
    found = exported.operators()
    if exported.variant.dialect != "fused" or exported.info.name not in ("trunk", "tail"):
        return
    assert found["Attention"] == 2
    assert found["RotaryEmbedding"] == 2 * (1 if exported.variant.computes_in_half else 2)


def test_packed_projections(exported: Exported) -> None:
    """QKV and gate/up are one product each: with o and down four per layer, and two of attention where spelled out."""
    spelled_out = 2 if exported.variant.dialect == "primitive" else 0
    per_layer = {
        "vision": {f"vision.layers.{i}": 4 + spelled_out for i in (0, 1)},
        "trunk": {f"llm.layers.{i}": 4 + spelled_out for i in (0, 1)},
        "tail": {f"llm.layers.{i}": 4 + spelled_out for i in (2, 3)},
        "rpn": {"rpn.layers.0": 4 + spelled_out, "rpn.layers.1": 2},
    }[exported.info.name]
    found = Counter(node.name.split("/")[0] for node in exported.nodes if node.op_type == "MatMul")
    assert {prefix: found[prefix] for prefix in per_layer} == per_layer
    others = {"vision": 2, "trunk": 0, "tail": 1, "rpn": 2 if exported.variant.dialect == "primitive" else 1}
    assert sum(found.values()) - sum(per_layer.values()) == others[exported.info.name]


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize(
    ("tap_layer", "rpn"),
    [(3, RpnSpec(1)), (1, RpnSpec(3)), (2, RpnSpec(1))],
    ids=["one tail layer and no whole RPN layer", "one trunk layer", "no whole RPN layer"],
)
def test_shortest_graphs(tiny_spec: ModelSpec, tmp_path: Path, tap_layer: int, rpn: RpnSpec, dialect: str) -> None:
    write_random_checkpoint(tmp_path / "checkpoint", dataclasses.replace(tiny_spec, tap_layer=tap_layer, rpn=rpn))
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", options(f"{dialect}-fp32"))
    bundle = open_bundle(tmp_path / "bundle")
    for name in GRAPHS:
        exported = Exported(bundle, f"{dialect}-fp32", name)
        test_the_checker_accepts_it_with_its_weights(exported)
        test_nothing_is_computed_for_nobody(exported)
        test_the_manifest_lists_the_graphs_inputs_and_outputs(exported)
        test_large_tensors_are_external_and_small_ones_are_not(exported)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("variant", ["fused-fp16", "primitive-fp16"])
def test_no_two_products_with_weights_read_the_same(bundle: Bundle, variant: str, graph: str) -> None:
    """Those that did would be fused, which one release of TensorRT does wrongly: they are packed.

    The query and the key of the RPN's last layer are not, and read different rows.
    """
    exported = Exported(bundle, variant, graph)
    weights = {tensor.name for tensor in exported.graph.initializer}
    made_by = {output: node for node in exported.nodes for output in node.output}

    def source(name: str) -> str:
        """What it is before casts."""
        while name in made_by and made_by[name].op_type == "Cast":
            name = made_by[name].input[0]
        return name

    read = [source(node.input[0]) for node in exported.nodes if node.op_type == "MatMul" and node.input[1] in weights]
    assert len(read) >= 4
    assert [name for name, count in Counter(read).items() if count > 1] == []
