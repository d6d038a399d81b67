"""A graph that computes for ever, in place of one of a bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle
from sdrpn.families.llava.vision_spec import clip_of

__all__ = ["make_vision_endless"]


def make_vision_endless(bundle: Path) -> None:
    """Replace the vision graph of the variant for a CPU, and say so in the manifest."""
    opened = open_bundle(bundle)
    graph, spec = opened.variant().graphs["vision"], opened.spec
    side, shape = clip_of(spec).image_size_px, [1, clip_of(spec).image_tokens, spec.llm.width]
    path = bundle / graph.file
    path.write_bytes(_endless(side, shape).SerializeToString())
    manifest = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    content = path.read_bytes()
    manifest["files"][graph.file] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")


def _endless(side: int, shape: list[int]) -> onnx.ModelProto:
    value, truth = helper.make_tensor_value_info, TensorProto.BOOL
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["go_on_next"]), helper.make_node("Identity", ["x"], ["x_next"])],
        "body",
        [value("turn", TensorProto.INT64, []), value("go_on", truth, []), value("x", TensorProto.FLOAT, None)],
        [value("go_on_next", truth, []), value("x_next", TensorProto.FLOAT, None)],
    )
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [3], shape),
        helper.make_tensor("true", truth, [], [True]),
    ]
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Loop", ["", "true", "zeros"], ["image_embeds"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "vision",
        [value("pixel_values", TensorProto.FLOAT, ["images", 3, side, side])],
        [value("image_embeds", TensorProto.FLOAT, ["images", *shape[1:]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
