"""The vision graphs of both Qwen families in ONNX Runtime, compared with official outputs and the PyTorch towers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from PIL import Image

from sdrpn.bundle.numerics import PrecisionName
from sdrpn.export.dialects import DIALECTS
from sdrpn.export.qwen_vision import AUTHOR
from sdrpn.export.weights import WeightTable, onnx_type
from sdrpn.families.qwen.checkpoint import open_qwen
from sdrpn.families.qwen.tower_inputs import tower_inputs
from sdrpn.families.qwen.vision_spec import QwenVision, qwen_vision_of, with_image_tokens
from sdrpn.images.image import open_image
from sdrpn.images.patches import crop_patches, picture_patches
from sdrpn.model import model_from_checkpoint
from sdrpn.model.looks import encoded_look
from tests.families.qwen.checkpoint import CONFIG_3, CONFIG_25, config_of, write_qwen
from tests.families.qwen.official import WHOLE, run_named, runs
from tests.tolerances import GOLDEN_VISION_ABS, PARITY_ABS, PARITY_FP16_ABS

Feeds = dict[str, npt.NDArray[Any]]
# Grids of image tokens: less than a window, ragged on both sides, whole windows, a row, and a column.
GRIDS = [(1, 1), (9, 5), (8, 8), (1, 13), (11, 1)]


def written(checkpoint: Path, folder: Path, dialect: str, precision: PrecisionName = "fp32") -> Path:
    """The vision graph of a checkpoint, with its weights beside it."""
    computes = {"fp32": "float32", "fp16": "float16"}[precision]
    with open_qwen(checkpoint) as weights:
        table = WeightTable("vision", precision, AUTHOR.weights(weights.spec))
        table.write(folder, weights, frozenset(), lambda size_bytes: None)
        graph = AUTHOR.graph(weights.spec, DIALECTS[dialect], onnx_type(computes), table)  # type: ignore[index]
        graph.save(folder / "vision.onnx")
    return folder / "vision.onnx"


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(opened: onnxruntime.InferenceSession, feeds: Feeds) -> Feeds:
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


def require_close(found: npt.NDArray[Any], expected: Any, most: float) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    assert difference <= most, f"differs by {difference:.2e}"


_official: dict[tuple[str, str], onnxruntime.InferenceSession] = {}


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize("name", runs("gateon"))
def test_official_pictures_and_crops(
    name: tuple[str, str, str], dialect: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_named(name)
    if (run.model, dialect) not in _official:
        path = written(WHOLE / run.model, tmp_path_factory.mktemp("official"), dialect)
        _official[run.model, dialect] = session(path)
    opened, picture = _official[run.model, dialect], open_image(run.picture)
    found = outputs(opened, fed(run.vision, picture_patches(picture, run.vision), run.hw))
    require_close(found["image_embeds"][0], run.plain["vision_embeds"], GOLDEN_VISION_ABS)
    for number, expected in enumerate(run.plain.get("deepstack", ())):
        require_close(found[f"deepstack.{number}"][0], expected, GOLDEN_VISION_ABS)
    if "crop_embeds" not in run.arrays:
        return
    x1, y1, x2, y2 = run.arrays["box_px"].tolist()
    height, width = (run.arrays["crop_grid_thw"][0, 1:] // 2).tolist()
    crop = outputs(opened, fed(run.vision, crop_patches(picture, (x1, y1, x2, y2), run.vision), (height, width)))
    require_close(crop["image_embeds"][0], run.arrays["crop_embeds"], GOLDEN_VISION_ABS)


def fed(vision: QwenVision, patches: npt.NDArray[np.float32], hw: tuple[int, int]) -> Feeds:
    return {"pixel_values": patches, **tower_inputs(hw, vision)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_grids_of_every_kind(family: str, dialect: str, precision: PrecisionName, tmp_path: Path) -> None:
    checkpoint = write_qwen(tmp_path / "model", config_of(CONFIG_25 if family == "qwen2.5-vl" else CONFIG_3))
    with open_qwen(checkpoint) as weights:
        model = model_from_checkpoint(weights)
    vision = with_image_tokens(qwen_vision_of(model.spec), 4, 200)
    opened = session(written(checkpoint, tmp_path / "graph", dialect, precision))
    most = PARITY_ABS if precision == "fp32" else PARITY_FP16_ABS
    for hw in GRIDS:
        rng = np.random.default_rng(hw[0])
        patches = rng.normal(size=(4 * hw[0] * hw[1], vision.patch_numbers)).astype(np.float32)
        inputs = fed(vision, patches, hw)
        look = encoded_look(model, inputs)
        found = outputs(opened, inputs)
        require_close(found.pop("image_embeds"), look.embeds, most)
        for number, feature in enumerate(look.deepstack):
            require_close(found.pop(f"deepstack.{number}"), feature, most)
        assert found == {}


def test_only_layers_that_look_everywhere_attend_to_all_patches(tmp_path: Path) -> None:
    tower = {**CONFIG_25["vision_config"], "depth": 4, "fullatt_block_indexes": [2]}
    config = config_of(CONFIG_25, vision_config=tower)
    path = written(write_qwen(tmp_path / "model", config), tmp_path / "graph", "fused")
    graph = onnx.load(path, load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert [len(node.input) for node in attentions] == [4, 4, 3, 4]  # with a mask, and without
    assert Counter(node.op_type for node in graph.node)["Expand"] == 1  # one mask for all
    # What a windowed attention reads has the windows as its batch.
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.value_info
    }
    windows = [dims[name] for name in dims if name.endswith("windows")]
    assert windows == [["windows", 64, 96]] * 3


def test_a_picture_goes_through(tmp_path: Path) -> None:
    """From pixels: more patches than windows have room for, and a size that fills none of them."""
    checkpoint = write_qwen(tmp_path / "model", config_of(CONFIG_25))
    with open_qwen(checkpoint) as weights:
        model = model_from_checkpoint(weights)
    vision = with_image_tokens(qwen_vision_of(model.spec), 4, 120)
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 250, 3), np.uint8))
    hw = vision.grid(picture.size).hw
    inputs = fed(vision, picture_patches(picture, vision), hw)
    found = outputs(session(written(checkpoint, tmp_path / "graph", "fused")), inputs)
    require_close(found["image_embeds"], encoded_look(model, inputs).embeds, PARITY_ABS)
