"""The page decides again from a map as Python does: the same boxes, crops and reasons on many maps, bit for bit.

Its modules run in Node.js; without it these tests are skipped.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.errors import BadImage
from sdrpn.families.qwen.vision_spec import qwen_vision_of
from sdrpn.families.registry import family_of, seen_of
from sdrpn.method.geometry import Fit, PaddedGrid
from sdrpn.method.roi import RoiDecision, RoiPolicy, blur, decide_cells, roi_map
from sdrpn.method.spec import ModelSpec, Vision
from sdrpn.runtime.regions import dropped_regions, regions_of
from sdrpn.runtime.server import page
from sdrpn.runtime.server.replies import map_json
from tests.families.qwen.models import KINDS
from tests.tiny_models import tiny_spec, tiny_vision

Upscale = Literal["mask", "bbox"]
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
FOLDER = Path(page.__file__).parent / "page"

PROGRAM = """
import { readFileSync } from "node:fs";
const { readMap, blur, decide, scores } = await import(`${process.argv[1]}/roi.js`);
const { SquareGrid } = await import(`${process.argv[1]}/grid.js`);
const cases = JSON.parse(readFileSync(0));
console.log(JSON.stringify(cases.map(({ map, imageWh, sidePx, fit, policy, px }) => {
  const read = readMap(map);
  const grid = new SquareGrid(imageWh, sidePx, read.h, fit);
  const found = decide(read, grid, policy);
  return {
    ...found,
    blurred: [...blur(read).values],
    cells: px.map((box) => grid.boxCellsFromPx(box)),
    scores: found.boxes.map((box) => scores(read, box)),
  };
})));
"""


# Replies of /v1/look, each under another threshold.
UNDER = """
import { readFileSync } from "node:fs";
const { Found } = await import(`${process.argv[1]}/found.js`);
const cases = JSON.parse(readFileSync(0));
console.log(JSON.stringify(cases.map(({ reply, threshold }) => new Found(reply).under(threshold))));
"""


def decoded(cases: list[dict[str, Any]], program: str = PROGRAM) -> list[dict[str, Any]]:
    assert NODE is not None
    command = [NODE, "--input-type=module", "--eval", program, str(FOLDER)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def random_map(generator: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """Noise, a few peaks, whole plateaus, or almost nothing."""
    return random_values(generator, (side, side))


def random_values(generator: np.random.Generator, hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    kind = generator.integers(4)
    values = generator.random(hw, np.float32) ** np.float32(generator.choice([1, 4, 12]))
    if kind == 1:
        y, x = np.mgrid[: hw[0], : hw[1]]
        values = values * np.float32(0.1)
        for _ in range(generator.integers(1, 4)):
            centre = generator.integers(0, hw)
            distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
            values = np.maximum(values, np.exp(-distance / generator.uniform(0.3, 9)).astype(np.float32))
    elif kind == 2:
        values = generator.integers(0, 2, hw).astype(np.float32) * np.float32(0.75)
    return values


def random_case(generator: np.random.Generator) -> tuple[npt.NDArray[np.float32], PaddedGrid, RoiPolicy]:
    side = int(generator.choice([1, 2, 4, 12, 24]))
    image_wh = int(generator.integers(1, 3000)), int(generator.integers(1, 3000))
    fit: Fit = "pad" if generator.random() < 0.6 else "crop"
    if fit == "crop":  # a thin picture that was cut to a square has a scale that no model meets
        image_wh = max(image_wh[0], 40), max(image_wh[1], 40)
    grid = PaddedGrid(image_wh, int(generator.choice([56, 224, 336])), side, fit)
    policy = RoiPolicy(
        threshold=round(float(generator.uniform(0.01, 0.99)), 2),
        upscale="mask" if generator.random() < 0.5 else "bbox",
        min_cells=int(generator.integers(1, 4)),
        max_share=float(generator.choice([0.05, 0.390625, 1.0])),
    )
    return random_map(generator, side), grid, policy


def test_it_decides_as_python_does() -> None:
    generator = np.random.default_rng(7)
    cases = [random_case(generator) for _ in range(3000)]
    asked, boxes_px = [], []
    for values, grid, policy in cases:
        width, height = grid.image_wh
        x, y = int(generator.integers(0, width)), int(generator.integers(0, height))
        boxes_px.append([(x, y, int(generator.integers(x, width)) + 1, int(generator.integers(y, height)) + 1)])
        rules = {name: getattr(policy, name) for name in ("threshold", "upscale", "min_cells", "max_share")}
        asked.append(
            {
                "map": map_json(values, "float32"),
                "imageWh": grid.image_wh,
                "sidePx": grid.image_size_px,
                "fit": grid.fit,
                "policy": rules,
                "px": boxes_px[-1],
            }
        )
    crops = left_out = 0
    for (values, grid, policy), boxes, found in zip(cases, boxes_px, decoded(asked), strict=True):
        blurred = blur(values)
        expected = decide_cells(blurred > policy.threshold, blurred, policy.threshold, grid, policy)
        assert np.array_equal(np.array(found["blurred"], np.float32), blurred.ravel())
        assert found["boxes"] == expected.boxes_cells.tolist()
        assert found["crops"] == [list(crop.box_xyxy_px) for crop in expected.crops]
        assert [(part["box"], part["reason"]) for part in found["leftOut"]] == [
            (list(part.box_cells), part.reason) for part in expected.left_out
        ]
        assert found["cells"] == [list(grid.box_cells_from_px(box)) for box in boxes]
        for (x1, y1, x2, y2), score in zip(found["boxes"], found["scores"], strict=True):
            under = values[y1:y2, x1:x2]
            assert score["max"] == float(under.max())
            assert abs(score["mean"] - float(under.mean(dtype=np.float64))) < 1e-12
        crops += len(expected.crops)
        left_out += len(expected.left_out)
    assert crops > 500  # cases that show something
    assert left_out > 500


FAMILIES: dict[str, ModelSpec] = {
    "squares": dataclasses.replace(tiny_spec(), vision=tiny_vision(image_size_px=112)),
    "cut squares": dataclasses.replace(tiny_spec(), vision=tiny_vision(image_size_px=112, fit="crop")),
    **{kind: KINDS[kind] for kind in ("sd-rpn", "q-zoom", "q-zoom-3")},
}


def random_look(generator: np.random.Generator, spec: ModelSpec) -> tuple[Vision, tuple[int, int]]:
    """A budget, where the model has one, and the size of a picture that it takes."""
    family, vision = family_of(spec), spec.vision
    if family.square(vision) is None:
        least = int(generator.integers(4, 80))
        vision = family.with_image_tokens(vision, least, int(generator.integers(least, 1200)))
    while True:
        wide, high = (int(2 ** generator.uniform(3, 11.5)) for _ in range(2))
        try:
            _ = vision.grid((wide, high)).hw
        except BadImage:
            continue
        return vision, (wide, high)


def expected_under(decision: RoiDecision, shown: npt.NDArray[np.float32], grid: Any) -> dict[str, Any]:
    """As `found.js` gives it."""
    note = decision.note if not decision.crops and len(decision.boxes_cells) and not decision.left_out else None
    return {
        "boxes": [{"box": list(part.xyxy_px), "max": part.score_max} for part in regions_of(decision, shown, grid)],
        "leftOut": [
            {"box": None if part.xyxy_px is None else list(part.xyxy_px), "reason": part.reason}
            for part in dropped_regions(decision, shown, grid)
        ],
        "note": note or "",
    }


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_reply_is_decided_again_as_its_family_does(kind: str) -> None:
    """Under any threshold, from the map, the rules and the sinks of the reply alone."""
    spec, generator = FAMILIES[kind], np.random.default_rng(11)
    family = family_of(spec)
    cases, expected = list[dict[str, Any]](), list[dict[str, Any]]()
    for _ in range(600):
        vision, image_wh = random_look(generator, spec)
        grid = vision.grid(image_wh)
        values = random_values(generator, grid.hw)
        logits = np.asarray(np.log(values + 1e-7) - np.log(1 - values + 1e-7), np.float32)
        has_sinks = spec.rpn is not None and spec.rpn.sink_query
        sinks = np.asarray(generator.normal(-1, 1.5, grid.hw), np.float32) if has_sinks else None
        threshold = round(float(generator.uniform(0.01, 0.99)), 2)
        policy = dataclasses.replace(family.policy(spec), threshold=threshold)
        if "upscale" in family.policy_parts:
            upscale: Upscale = "bbox" if generator.random() < 0.5 else "mask"
            policy = dataclasses.replace(policy, upscale=upscale, min_cells=int(generator.integers(1, 4)))
        moved = dataclasses.replace(spec, vision=vision)
        decision = family.decide(policy, moved)(logits, image_wh, sinks)
        shown, kept = roi_map(logits), family.kept_cells(spec, grid.hw, sinks)
        rules = {name: getattr(policy, name) for name in ("upscale", "min_cells", "max_share")}
        look = {
            "map": map_json(shown, "float32"),
            "sinks": [] if kept is None else np.flatnonzero(~kept).tolist(),
            "boxes": [],
            "dropped": [],
            "note": "the server's own",
        }
        reply: dict[str, Any] = {
            "image_wh": image_wh,
            "fit": seen_of(moved),
            "policy": {**rules, "threshold": 0.005},  # another than any that is tried
            "rules": family.map_rules(spec, vision).to_dict(),
            "looks": [look],
        }
        cases.append({"reply": reply, "threshold": threshold})
        expected.append(expected_under(decision, shown, grid))
    found = decoded(cases, UNDER)
    for case, mine, theirs in zip(cases, found, expected, strict=True):
        assert mine == theirs, (case["reply"]["image_wh"], case["threshold"])
    assert sum(bool(each["boxes"]) for each in expected) > 100  # cases that show something
    if "upscale" in family.policy_parts:
        assert sum(bool(each["leftOut"]) for each in expected) > 100


RESIZED = """
import { readFileSync } from "node:fs";
const { ResizedGrid } = await import(`${process.argv[1]}/resized.js`);
const cases = JSON.parse(readFileSync(0));
console.log(JSON.stringify(cases.map(({ imageWh, hw, cells, box, px, slid }) => {
  const grid = new ResizedGrid(imageWh, hw, cells);
  const why = grid.refusal(px);
  const cropHw = why === null ? grid.cropHw(px) : null;
  return { px: grid.boxPxFromCells(box, slid), box: grid.boxCellsFromPx(px), why, hw: cropHw };
})));
"""


@pytest.mark.parametrize("kind", ["sd-rpn", "q-zoom-3"])
def test_cells_of_resized_pictures(kind: str) -> None:
    """Boxes in pixels and cells, and the grid of a crop: of any shape, also those that are refused."""
    spec, generator = KINDS[kind], np.random.default_rng(12)
    family, cases, expected = family_of(spec), [], []
    for _ in range(1500):
        vision, image_wh = random_look(generator, spec)
        grid, budget = qwen_vision_of(vision).grid(image_wh), qwen_vision_of(vision).budget
        (x1, x2), (y1, y2) = (sorted(generator.choice(side + 1, 2, False).tolist()) for side in grid.hw[::-1])
        (left, right), (top, bottom) = (sorted(generator.choice(side + 1, 2, False).tolist()) for side in image_wh)
        px = left, top, right, bottom
        if generator.random() < 0.2:
            px = left, top, right, min(top + 1, image_wh[1])
        size = px[2] - px[0], px[3] - px[1]
        cells = family.map_rules(spec, vision).to_dict()["cells"]
        slid = bool(generator.random() < 0.5)
        case = {"imageWh": image_wh, "hw": grid.hw, "cells": cells, "box": (x1, y1, x2, y2), "px": px, "slid": slid}
        cases.append(case)
        why = None
        if not budget.accepts(size):
            why = f"the region is {size[0]} x {size[1]} px, which is too small or too long to be resized"
        expected.append(
            {
                "px": grid.box_px_from_cells((x1, y1, x2, y2), slid=slid),
                "box": grid.box_cells_from_px(px),
                "why": why,
                "hw": None if why else grid.crop_hw(px),
            }
        )
    assert decoded(cases, RESIZED) == json.loads(json.dumps(expected))
    assert 20 < sum(each["why"] is not None for each in expected) < 1400


def test_a_box_that_float32_puts_beyond_the_picture() -> None:
    """With and without a slide back."""
    cells = {"cell_px": 32, "least_crop_px": 28, "least_px": 0, "most_px": 2**28, "smallest_side_px": 1}
    case = {"imageWh": (1945, 1774), "hw": (55, 25), "cells": {**cells, "most_ratio": 200}, "box": (5, 12, 25, 38)}
    found = decoded([{**case, "px": (0, 0, 64, 64), "slid": slid} for slid in (True, False)], RESIZED)
    assert [each["px"] for each in found] == [[388, 387, 1945, 1225], [389, 387, 1945, 1225]]


def test_every_number_is_read() -> None:
    """Small ones and large ones, to the last bit."""
    values = np.arange(0, 0x3F800001, 0x10001, dtype="<u4").view("<f4")[None]  # 0 to 1
    program = PROGRAM.partition("const cases")[0] + (
        "const map = JSON.parse(readFileSync(0)); console.log(JSON.stringify([...readMap(map).values]));"
    )
    assert NODE is not None
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program, str(FOLDER)],
        input=json.dumps(map_json(values, "float32")),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert np.array_equal(np.array(json.loads(done.stdout)), values[0].astype(np.float64))
