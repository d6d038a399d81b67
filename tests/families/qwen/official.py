"""Outputs of the official Qwen implementations: all of them where they lie beside a checkout, else a small set."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision
from tests.families.qwen.official_model import write_official_checkpoint

ROOT = Path(__file__).parents[3]
WHOLE = ROOT.parent / "shared" / "golden" / "qwen"
SET = WHOLE if WHOLE.is_dir() else ROOT / "tests" / "golden" / "qwen"
FUNCTIONS = SET / "functions"
END, IMAGE = 303, 304  # ids of the small models
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALVES = (0.5, 0.5, 0.5)


def vision_25(least: int = 4, most: int = 16384) -> Qwen25Vision:
    """A small tower with the patches and windows of the released models; `least`, `most`: image tokens."""
    area = 28**2
    return Qwen25Vision(
        patch_size_px=14,
        width=32,
        layers=4,
        heads=2,
        mlp_width=64,
        least_pixels=least * area,
        most_pixels=most * area,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        full_layers=(1, 3),
    )


def vision_3(least: int = 4, most: int = 16384) -> Qwen3Vision:
    """The same of Qwen3-VL."""
    area = 32**2
    return Qwen3Vision(
        patch_size_px=16,
        width=32,
        layers=4,
        heads=2,
        mlp_width=64,
        least_pixels=least * area,
        most_pixels=most * area,
        image_mean=HALVES,
        image_std=HALVES,
        position_side=8,
        deepstack_layers=(1, 2),
    )


@dataclass(frozen=True)
class MapCase:
    """One map and what the official functions made of it."""

    facts: dict[str, Any]
    logits: npt.NDArray[np.float32]
    positions: npt.NDArray[np.float32] | None

    @property
    def image_wh(self) -> tuple[int, int]:
        width, height = self.facts["src"]
        return width, height


def map_cases(scheme: str) -> list[MapCase]:
    """Maps of one scheme: "qzoom" or "sdrpn"."""
    facts = json.loads((FUNCTIONS / f"post_{scheme}.json").read_text(encoding="utf-8"))
    with np.load(FUNCTIONS / f"post_{scheme}.npz") as arrays:
        return [
            MapCase(
                case,
                arrays[f"logits_{case['i']}"],
                arrays.get(f"roi_pos_{case['i']}", None),
            )
            for case in facts
        ]


def resize_cases(version: str) -> list[list[Any]]:
    """[h, w, cell, least and most tokens, (h,w) or ValueError] of one version of transformers."""
    found: list[list[Any]] = json.loads((FUNCTIONS / f"smart_resize_{version}.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Run:
    """One answer of an official implementation: `arrays` of this variant, `plain` without a region."""

    model: str
    name: str
    variant: str
    case: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    plain: dict[str, npt.NDArray[Any]]

    @property
    def tokens(self) -> tuple[int, int]:
        return self.case["min_tokens"], self.case["max_tokens"]

    @property
    def picture(self) -> Path:
        return SET / "images" / f"{self.case['image']}.png"

    @property
    def vision(self) -> Qwen25Vision | Qwen3Vision:
        return vision_25(*self.tokens) if self.model.startswith("q25") else vision_3(*self.tokens)

    @property
    def sides(self) -> tuple[list[int], list[int]]:
        """The ids before and after the image; SD-RPN's own cases have them in their second pass alone."""
        ids = (self.plain["input_ids"] if self.plain else self.arrays["pass2_input_ids_full"]).tolist()
        first, cells = ids.index(IMAGE), ids.index(IMAGE)
        while ids[cells] == IMAGE:
            cells += 1
        after = ids[cells:]
        # <start> crop <end> <end> question: the prompt's own end is the second.
        return ids[:first], after if self.plain else after[after.index(END) + 1 :]

    @property
    def hw(self) -> tuple[int, int]:
        """The image's tokens of an array."""
        h, w = self.arrays["roi_logits"].shape
        return h, w


def runs(*variants: str) -> list[Any]:
    """Every run of these variants, as parameters; skipped where the whole set is not there."""
    if not WHOLE.is_dir():
        reason = pytest.mark.skip(reason="the whole set of official outputs does not lie beside this checkout")
        return [pytest.param(None, marks=reason)]
    return answers(*variants)


def answers(*variants: str) -> list[Any]:
    """Every run of these variants, of the small set where the whole is not there: what was found on the way to an
    answer, and the answer; `runs` have all that went into it."""
    names = [
        (model, case["name"], variant)
        for model in ("q25_K3T3", "q3_K3T3")
        for case in json.loads((SET / model / "cases.json").read_text(encoding="utf-8"))
        for variant in variants
        if (SET / model / "cases" / f"{case['name']}__{variant}.npz").is_file()
    ]
    return [pytest.param(name, id="-".join(name)) for name in names]


def write_checkpoint(model: str, folder: Path) -> None:
    """The checkpoint of a model: a copy that can be written to, or drawn again from its seed."""
    if not WHOLE.is_dir():
        write_official_checkpoint(model, folder)
        return
    shutil.copytree(WHOLE / model, folder, ignore=shutil.ignore_patterns("cases"))
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)


def run_named(name: tuple[str, str, str]) -> Run:
    """Read one of `runs`."""
    model, case_name, variant = name
    cases = json.loads((SET / model / "cases.json").read_text(encoding="utf-8"))
    case = next(case for case in cases if case["name"] == case_name)
    return Run(model, case_name, variant, case, _arrays(model, case_name, variant), _plain(model, case_name))


def _plain(model: str, case_name: str) -> dict[str, npt.NDArray[Any]]:
    there = (SET / model / "cases" / f"{case_name}__plain.npz").is_file()
    return _arrays(model, case_name, "plain") if there else {}


def _arrays(model: str, case_name: str, variant: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(SET / model / "cases" / f"{case_name}__{variant}.npz") as arrays:
        return {name: arrays[name] for name in arrays}
