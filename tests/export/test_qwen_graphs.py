"""All graphs of both Qwen families in ONNX Runtime, by hand: compared with PyTorch, and with official outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.signatures import GraphSignature, expected_signatures
from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.family import Positions
from sdrpn.families.qwen.positions import axes_of
from sdrpn.families.qwen.sinks import border_kept, not_sinks
from sdrpn.families.qwen.vision_spec import with_image_tokens
from sdrpn.families.qwen.zoom import decide_zoom
from sdrpn.families.registry import family_of
from sdrpn.images.image import open_image
from sdrpn.method.gate import gate_score
from sdrpn.method.grids import Box, cell_count
from sdrpn.method.roi import roi_logits_from_scores
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.looks import encoded_look
from tests.export.qwen_graphs import Look, QwenGraphs, close
from tests.families.qwen.models import KINDS
from tests.families.qwen.official import WHOLE, Run, run_named, runs
from tests.families.qwen.second_pass import first_positions, second_pass
from tests.tolerances import (
    GOLDEN_GATE_SCORE_ABS,
    GOLDEN_HIDDEN_ABS,
    GOLDEN_ROI_LOGITS_ABS,
    GOLDEN_STEP_LOGITS_ABS,
    GOLDEN_VISION_ABS,
    PARITY_ABS,
)

DIALECTS = ("fused", "primitive")
BEFORE, AFTER = [300, 12, 302], [303, 40, 41, 42, 7, 301]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen")


# Compared with PyTorch ----------------------------------------------------------------------------------------------


def exported(kind: str, folder: Path) -> tuple[Path, Path]:
    """A random checkpoint of a kind, and its bundle in both dialects."""
    checkpoint, bundle = folder / kind, folder / f"{kind}-bundle"
    if not bundle.exists():
        write_random_checkpoint(checkpoint, KINDS[kind], roi_gain=3.0)
        for dialect in DIALECTS:
            export_bundle(checkpoint, bundle, ExportOptions("fp32", dialect))  # type: ignore[arg-type]
    return checkpoint, bundle


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_has_the_graphs_that_the_model_needs(kind: str, dialect: str, folder: Path) -> None:
    bundle = open_bundle(exported(kind, folder)[1])
    expected = expected_signatures(bundle.spec, dialect, "fp32")
    graphs = bundle.variant(f"{dialect}-fp32").graphs
    rpn = bundle.spec.rpn
    assert set(graphs) == {
        *("vision", "trunk", "tail"),
        *(["rpn"] if rpn else []),
        *(["gate"] if rpn and rpn.gate_layers else []),
    }
    for name, graph in graphs.items():
        assert GraphSignature.of(graph.inputs, graph.outputs).difference(expected[name]) is None


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_equals_the_model(kind: str, dialect: str, folder: Path) -> None:
    checkpoint, bundle = exported(kind, folder)
    graphs = QwenGraphs(bundle, f"{dialect}-fp32", checkpoint)
    with open_checkpoint(checkpoint) as opened:
        model = model_from_checkpoint(opened)
    spec = graphs.spec
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 210, 3), np.uint8))
    hw = spec.vision.grid(picture.size).hw
    inputs = family_of(spec).first_look(picture, spec.vision)
    look = graphs.look(inputs)
    expected = encoded_look(model, inputs)
    close(look.embeds, expected.embeds[0], PARITY_ABS, "image_embeds")
    for feature, wanted in zip(look.deepstack, expected.deepstack, strict=True):
        close(feature, wanted[0], PARITY_ABS, "deepstack")

    positions = first_positions(len(BEFORE), hw, len(AFTER)).rows
    ids, image = prompt_rows(BEFORE, cell_count(hw), AFTER)
    values = graphs.rows_of(ids, image, [look])
    after = len(BEFORE) + cell_count(hw)
    turns = torch.from_numpy(positions[axes_of(spec)].T.astype(np.float32))[None]
    embeds, features = (
        torch.from_numpy(values["inputs_embeds"])[None],
        [torch.from_numpy(array)[None] for name, array in values.items() if name.startswith("deepstack")],
    )
    with torch.inference_mode():
        tap_tensor = model.trunk(embeds, turns, deepstack=features)
    tap = tap_tensor[0].numpy()
    # In two runs, the second of which reads what the first wrote.
    caches, cuts = graphs.spare("trunk", len(ids)), (after, len(ids))
    parts, start = [], 0
    for end in cuts:
        part = {name: array[start:end] for name, array in values.items()}
        parts.append(graphs.pass_through("trunk", part, positions[:, start:end], caches, start)["tap"])
        start = end
    close(np.concatenate(parts), tap, PARITY_ABS, "tap")
    require_tail(graphs, model, tap, positions, turns)
    if model.gate is not None:
        require_gate(graphs, model, tap, positions, turns, after)
    if model.rpn is not None:
        require_map(graphs, model, tap, positions, turns, after)


def require_tail(graphs: QwenGraphs, model: SdRpnModel, tap: Any, positions: Any, turns: torch.Tensor) -> None:
    caches = graphs.spare("tail", len(tap))
    found = graphs.pass_through("tail", {"tap": tap}, positions, caches)["logits"]
    with torch.inference_mode():
        close(found, model.tail(torch.from_numpy(tap)[None], turns)[0], PARITY_ABS, "logits")


def require_gate(graphs: QwenGraphs, model: SdRpnModel, tap: Any, positions: Any, turns: Any, after: int) -> None:
    assert model.gate is not None
    with torch.inference_mode():
        expected = float(model.gate(torch.from_numpy(tap)[None], turns)[0])
    whole = graphs.pass_through("gate", {"tap": tap}, positions, graphs.spare("gate", len(tap)))["gate_logit"]
    caches = graphs.spare("gate", len(tap))
    graphs.pass_through("gate", {"tap": tap[:after]}, positions[:, :after], caches)
    later = graphs.pass_through("gate", {"tap": tap[after:]}, positions[:, after:], caches, after)["gate_logit"]
    for found in (whole, later):
        close(found, [expected], PARITY_ABS, "gate_logit")


def require_map(graphs: QwenGraphs, model: SdRpnModel, tap: Any, positions: Any, turns: Any, after: int) -> None:
    assert model.rpn is not None
    assert model.spec.rpn is not None
    rows = torch.from_numpy(tap)[None]
    with torch.inference_mode():
        scores, sinks = model.rpn(rows, turns)[0], model.rpn.sink_logits(rows, turns)[0]
        seen = model.rpn.row_scores(rows, turns, after)[0].mean(dim=0).amax(dim=0)
    for cuts in ((len(tap),), (after, len(tap)), (2, after, len(tap))):
        found, raw = graphs.map_of(tap, positions, cuts)
        close(found["scores"], scores, PARITY_ABS, "scores")
        assert ("sink_logits" in found) == model.spec.rpn.sink_query
        if "sink_logits" in found:
            close(found["sink_logits"], sinks, PARITY_ABS, "sink_logits")
            assert raw["first_query_out"].dtype == np.float32
        assert ("seen" in found) == (model.spec.rpn.prune_above > 0)
        if "seen" in found and len(cuts) > 1:
            close(found["seen"], seen, PARITY_ABS, "seen")


def prompt_rows(before: list[int], cells: int, after: list[int]) -> tuple[Any, Any]:
    """Ids and which of them are the image's."""
    ids = np.array([*before, *[304] * cells, *after])
    image = np.zeros(len(ids), np.bool_)
    image[len(before) : len(before) + cells] = True
    return ids, image


# Compared with official outputs -------------------------------------------------------------------------------------

ENTRIES: dict[str, dict[str, Any]] = {
    "gateon_reusepos": {"reuse_src_pos": True},
    "nogate": {"enable_high_res": False},
    "nogate_reusepos": {"enable_high_res": False, "reuse_src_pos": True},
}
_opened: dict[tuple[str, str, str], QwenGraphs] = {}


def official(run: Run, dialect: str, folder: Path) -> QwenGraphs:
    """The bundle of an official model, as a variant has it."""
    variant = run.variant if run.variant in (*ENTRIES, "sdrpn") else ""
    key = run.model, variant, dialect
    if key not in _opened:
        checkpoint, bundle = folder / "-".join(key), folder / "-".join((*key, "bundle"))
        shutil.copytree(WHOLE / run.model, checkpoint, ignore=shutil.ignore_patterns("cases"))
        checkpoint.chmod(0o755)
        path = checkpoint / "config.json"
        path.chmod(0o644)
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, **ENTRIES.get(variant, {})}), encoding="utf-8")
        scheme: Any = "sd-rpn" if variant == "sdrpn" else "auto"
        export_bundle(checkpoint, bundle, ExportOptions("fp32", dialect), scheme=scheme)  # type: ignore[arg-type]
        _opened[key] = QwenGraphs(bundle, f"{dialect}-fp32", checkpoint)
    return _opened[key]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", runs("gateon", "gateon_reusepos", "nogate", "nogate_reusepos", "sdrpn"))
def test_official_runs(name: tuple[str, str, str], dialect: str, folder: Path) -> None:
    run = run_named(name)
    graphs, arrays, (before, after) = official(run, dialect, folder), run.arrays, run.sides
    spec, picture = graphs.spec, open_image(run.picture)
    rpn = spec.rpn
    assert rpn is not None
    vision = with_image_tokens(run.vision, *run.tokens)
    family, grid = family_of(spec), vision.grid(picture.size)
    look = graphs.look(family.first_look(picture, vision))
    cells = cell_count(grid.hw)
    ids, image = prompt_rows(before, cells, after)
    first = first_positions(len(before), grid.hw, len(after))
    trunk = graphs.spare("trunk", len(ids))
    tap = graphs.pass_through("trunk", graphs.rows_of(ids, image, [look]), first.rows, trunk)["tap"]
    if run.plain:
        close(look.embeds, run.plain["vision_embeds"], GOLDEN_VISION_ABS, "vision")
        close(next_logits(graphs, tap, first), run.plain["first_step_logits"], GOLDEN_STEP_LOGITS_ABS, "plain logits")
    if "tap_hidden" in arrays:
        close(tap, arrays["tap_hidden"], GOLDEN_HIDDEN_ABS, "tap")
    if rpn.gate_layers:
        logit = graphs.pass_through("gate", {"tap": tap}, first.rows, graphs.spare("gate", len(tap)))["gate_logit"]
        close(gate_score(float(logit[0])), arrays["gate_score"][0], GOLDEN_GATE_SCORE_ABS, "gate score")
    end = len(before) + cells
    found, _ = graphs.map_of(tap, first.rows, (end, len(tap)))
    scores = found["scores"][:, len(before) : end]
    logits = roi_logits_from_scores(scores, grid.hw, head_dim=spec.llm.head_dim, loss=rpn.loss)
    close(logits, arrays["roi_logits"], GOLDEN_ROI_LOGITS_ABS, "RoI logits")
    kept = border_kept(grid.hw, rpn.scheme)
    if rpn.sink_query:
        kept = not_sinks(found["sink_logits"][len(before) : end].reshape(grid.hw))
        assert np.array_equal(kept, arrays["sink_mask_keep"])
    decision = decide_zoom(logits, kept, grid, float(arrays["roi_conf_thresh"]), rpn.scheme)
    if not decision.crops or "crop_grid_thw" not in arrays:  # SD-RPN gives up on crops under 28 px
        return
    (crop,) = decision.crops
    x1, y1, x2, y2 = (int(edge) for edge in decision.boxes_cells[0])
    box: Box = x1, y1, x2, y2
    source = None
    if rpn.prune_above and cells > rpn.prune_above:
        source = family.kept_source(spec, found["seen"][len(before) : end])
    second = second_pass(
        rpn.scheme,
        before,
        grid.hw,
        after,
        grid.crop_hw(crop.box_xyxy_px),
        image_id=304,
        source_box_cells=box if rpn.reuse_positions else None,
        keep_cells=crop.keep_cells,
        keep_source=source,
    )
    if "valid_token_mask_final" in arrays:
        assert np.array_equal(second.kept, arrays["valid_token_mask_final"])
    again = graphs.look(family.crop_look(picture, crop.box_xyxy_px, vision))
    logits = next_logits_of_second(graphs, second, [look, again], tap, trunk, end)
    close(logits, arrays["first_step_logits"], GOLDEN_STEP_LOGITS_ABS, "logits of the second pass")


def next_logits_of_second(graphs: QwenGraphs, second: Any, looks: list[Look], tap: Any, trunk: Any, end: int) -> Any:
    """The trunk runs on rows after the image alone, unless some of the image's are left out."""
    values = graphs.rows_of(second.token_ids, second.is_image, looks)
    values = {name: array[second.kept] for name, array in values.items()}
    positions = Positions(second.kept_rows, second.positions.following)
    rows = positions.rows.shape[1]
    if second.kept[:end].all():
        longer = graphs.spare("trunk", rows)
        for name, cache in trunk.items():
            longer[name][:, :, :end] = cache[:, :, :end]
        start, first = end, [tap[:end]]
    else:
        longer, start, first = graphs.spare("trunk", rows), 0, []
    part = {name: array[start:] for name, array in values.items()}
    new = graphs.pass_through("trunk", part, positions.rows[:, start:], longer, start)["tap"]
    return next_logits(graphs, np.concatenate([*first, new]), positions)


def next_logits(graphs: QwenGraphs, tap: Any, positions: Positions) -> Any:
    return graphs.pass_through("tail", {"tap": tap}, positions.rows, graphs.spare("tail", len(tap)))["logits"]
