"""The page decides again from a map as Python does: the same boxes, crops and reasons on many maps, bit for bit.

Its modules run in Node.js; without it these tests are skipped.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.method.geometry import Fit, PaddedGrid
from sdrpn.method.roi import RoiPolicy, blur, decide_cells
from sdrpn.runtime.server import page
from sdrpn.runtime.server.replies import map_json

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


def decoded(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert NODE is not None
    command = [NODE, "--input-type=module", "--eval", PROGRAM, str(FOLDER)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def random_map(generator: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """Noise, a few peaks, whole plateaus, or almost nothing, in float16 as it is sent."""
    kind = generator.integers(4)
    values = generator.random((side, side), np.float32) ** np.float32(generator.choice([1, 4, 12]))
    if kind == 1:
        y, x = np.mgrid[:side, :side]
        values = values * np.float32(0.1)
        for _ in range(generator.integers(1, 4)):
            centre = generator.integers(0, side, 2)
            distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
            values = np.maximum(values, np.exp(-distance / generator.uniform(0.3, 9)).astype(np.float32))
    elif kind == 2:
        values = np.kron(generator.integers(0, 2, (side, side)), 1).astype(np.float32) * np.float32(0.75)
    return np.asarray(values, np.float16).astype(np.float32)


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
    for roi_map, grid, policy in cases:
        width, height = grid.image_wh
        x, y = int(generator.integers(0, width)), int(generator.integers(0, height))
        boxes_px.append([(x, y, int(generator.integers(x, width)) + 1, int(generator.integers(y, height)) + 1)])
        rules = {name: getattr(policy, name) for name in ("threshold", "upscale", "min_cells", "max_share")}
        asked.append(
            {
                "map": map_json(roi_map, "float16"),
                "imageWh": grid.image_wh,
                "sidePx": grid.image_size_px,
                "fit": grid.fit,
                "policy": rules,
                "px": boxes_px[-1],
            }
        )
    crops = left_out = 0
    for (roi_map, grid, policy), boxes, found in zip(cases, boxes_px, decoded(asked), strict=True):
        blurred = blur(roi_map)
        expected = decide_cells(blurred > policy.threshold, blurred, policy.threshold, grid, policy)
        assert np.array_equal(np.array(found["blurred"], np.float32), blurred.ravel())
        assert found["boxes"] == expected.boxes_cells.tolist()
        assert found["crops"] == [list(crop.box_xyxy_px) for crop in expected.crops]
        assert [(part["box"], part["reason"]) for part in found["leftOut"]] == [
            (list(part.box_cells), part.reason) for part in expected.left_out
        ]
        assert found["cells"] == [list(grid.box_cells_from_px(box)) for box in boxes]
        for (x1, y1, x2, y2), score in zip(found["boxes"], found["scores"], strict=True):
            under = roi_map[y1:y2, x1:x2]
            assert score["max"] == float(under.max())
            assert abs(score["mean"] - float(under.mean(dtype=np.float64))) < 1e-12
        crops += len(expected.crops)
        left_out += len(expected.left_out)
    assert crops > 500  # cases that show something
    assert left_out > 500


def test_every_float16_is_read() -> None:
    values = np.arange(0x7C00, dtype="<u2").view("<f2")  # all that are finite and not negative
    shape = (31, 1024)
    data = base64.b64encode(values.tobytes()).decode()
    program = PROGRAM.partition("const cases")[0] + (
        "const map = JSON.parse(readFileSync(0)); console.log(JSON.stringify([...readMap(map).values]));"
    )
    assert NODE is not None
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program, str(FOLDER)],
        input=json.dumps({"encoding": "float16", "shape": shape, "data": data}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert np.array_equal(np.array(json.loads(done.stdout)), values.astype(np.float64))
