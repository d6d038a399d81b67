"""The family `wide`, all that `sdrpn.families.family.Family` asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.family import (
    AroundCrop,
    Family,
    GraphTensor,
    Layout,
    Positions,
    Resize,
    Shapes,
    Span,
    TowerLoad,
    VisionInputs,
)
from sdrpn.images.patches import PatchedVision
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.method.map_rules import MapRules, ResizedCells
from sdrpn.method.preset import Preset
from sdrpn.method.recipe import HeadTable, Recipe
from sdrpn.method.roi import PolicyDecide, RoiPolicy, decide_by_policy
from sdrpn.method.spec import AskedScheme, ModelSpec, RoiLoss, RpnSpec, Vision
from tests.families.wide.vision_spec import WideSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sdrpn.text.prompt import Pieces, Prompt
    from sdrpn.text.turns import Turn

AXES = 3


class Wide:
    name = "wide"
    vision_author = "tests.families.wide.onnx_vision:AUTHOR"
    vision_module = "tests.families.wide.torch_vision:WideVision"
    random_writer = "tests.families.wide.checkpoint:write_random"
    checkpoint_opener = "tests.families.wide.checkpoint:open_wide"
    usual_prompt_tokens = 12
    label_sink_limit = 0.05
    label_rule = "sd-rpn"

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "wide"

    @property
    def prompt_names(self) -> Collection[str]:
        return ()

    def vision_type(self) -> type[Any]:
        return WideSpec

    def vision_shapes(self, spec: ModelSpec) -> Shapes:
        width, patch = spec.llm.width, 3 * _wide(spec.vision).patch_px ** 2
        return {"vision.patch.weight": (width, patch), "vision.place.weight": (width, 2), "vision.patch.bias": (width,)}

    def described(self, vision: Vision) -> Sequence[tuple[str, str]]:
        return (("image", f"up to {vision.image_tokens} tokens"),)

    def vision_layers(self, vision: Vision) -> int:
        return 0

    def look_numbers(self, vision: Vision) -> int:
        return vision.image_tokens * (3 * _wide(vision).patch_px ** 2 + 2)

    def tower_load(self, vision: Vision) -> TowerLoad:
        return TowerLoad(vision.image_tokens, 16, vision.image_tokens, 1)

    def most_crops(self, vision: Vision) -> int:
        return 2

    def shapes(self) -> Mapping[str, ModelSpec]:
        return {}

    def assumed(self, shape: str) -> Sequence[str]:
        return ()

    def vision_inputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        patch = 3 * _wide(spec.vision).patch_px ** 2
        return (
            GraphTensor("patches", "float32", ("images", "cells", patch)),
            GraphTensor("places", "float32", ("images", "cells", 2), "look"),
        )

    def vision_outputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        return (GraphTensor("image_embeds", "float32", ("images", "cells", spec.llm.width), "image_embeds"),)

    def deepstack(self, vision: Vision) -> int:
        return 0

    def with_image_tokens(self, vision: Vision, least: int, most: int) -> Vision:
        return vision

    def with_resize(self, vision: Vision, resize: Resize) -> Vision:
        return vision

    def look_extents(self, spec: ModelSpec) -> Mapping[str, tuple[int, int, int]]:
        return {"cells": (4, 20, spec.vision.image_tokens)}

    def square(self, vision: Vision) -> SquareVision | None:
        return None

    def patched(self, vision: Vision) -> PatchedVision | None:
        return None

    def look_tables(self, hw: tuple[int, int], vision: Vision) -> VisionInputs:
        return {}

    def first_look(self, picture: Image.Image, vision: Vision) -> VisionInputs:
        return _patches(picture, vision.grid(picture.size).hw, _wide(vision).patch_px)

    def crop_look(self, picture: Image.Image, box_xyxy_px: Box, vision: Vision) -> VisionInputs:
        hw = vision.grid(picture.size).crop_hw(box_xyxy_px)
        return _patches(picture.crop(box_xyxy_px), hw, _wide(vision).patch_px)

    def seen_picture(self, picture: Image.Image, vision: Vision) -> Image.Image:
        (rows, columns), side = vision.grid(picture.size).hw, _wide(vision).patch_px
        return picture.resize((columns * side, rows * side), Image.Resampling.BILINEAR)

    def blank_colour(self, vision: Vision) -> tuple[int, int, int]:
        return 127, 127, 127

    def prompt(self, tokenizer: Tokenizer, spec: ModelSpec, question: str) -> Prompt:
        from sdrpn.text.prompt import Prompt

        return Prompt((1, 7), tuple(tokenizer.encode(question).ids))

    def chat(self, tokenizer: Tokenizer, spec: ModelSpec, turns: Sequence[Turn]) -> Pieces:
        """The images first, then every text."""
        texts = tuple(token for turn in turns for token in tokenizer.encode(turn.text).ids)
        images = sum(turn.images for turn in turns)
        return ((1, 7), *[(7,)] * (images - 1), texts) if images else ((1, *texts),)

    def around_crop(self, spec: ModelSpec, ids_before: Sequence[int], ids_after: Sequence[int]) -> AroundCrop:
        return AroundCrop()

    def positions(self, spec: ModelSpec, layout: Layout) -> Positions | None:
        """Text on all axes alike; an image's cells at one time, by row and column; then after its longer side."""
        rows = [np.tile(np.arange(layout.before), (AXES, 1))]
        place = layout.before
        for hw, keep in ((layout.image_hw, None), *((crop.hw, crop.keep_cells) for crop in layout.crops)):
            cells = np.indices(hw).reshape(2, -1) + place
            every = np.concatenate((np.full((1, cells.shape[1]), place), cells))
            rows.append(every if keep is None else every[:, keep.ravel()])
            place += max(hw)
        rows.append(np.tile(np.arange(place, place + layout.after), (AXES, 1)))
        return Positions(np.concatenate(rows, axis=1), place + layout.after)

    def positions_of_spans(self, spans: Sequence[Span]) -> Positions | None:
        """As `positions`."""
        rows, place = [np.empty((AXES, 0), np.int64)], 0
        for span in spans:
            cells = np.indices((1, span) if isinstance(span, int) else span).reshape(2, -1) + place
            times = np.full((1, cells.shape[1]), place)
            rows.append(np.tile(cells[1:], (AXES, 1)) if isinstance(span, int) else np.concatenate((times, cells)))
            place += span if isinstance(span, int) else max(span)
        return Positions(np.concatenate(rows, axis=1), place)

    def axis_of(self, spec: ModelSpec) -> npt.NDArray[np.int64] | None:
        """A third of the pairs of channels to each axis, in turns."""
        return np.arange(spec.llm.head_dim // 2, dtype=np.int64) % AXES

    def policy(self, spec: ModelSpec) -> RoiPolicy:
        return RoiPolicy(0.4, min_cells=1)

    @property
    def policy_parts(self) -> Collection[str]:
        return ("threshold", "upscale", "max_ratio", "min_cells", "max_share")

    def preset(self, spec: ModelSpec, task: str) -> Preset:
        raise BadInput("this model has no presets")

    def head_tables(self) -> Mapping[str, HeadTable]:
        return {}

    def recipes(self) -> Mapping[str, Recipe]:
        return {}

    def trained_rpn(self, layers: int, *, loss: RoiLoss = "bce", scheme: AskedScheme = "auto") -> RpnSpec:
        return RpnSpec(layers, loss=loss)

    def decide(self, policy: RoiPolicy, spec: ModelSpec) -> PolicyDecide:
        return decide_by_policy(policy, spec.vision.grid)

    def map_rules(self, spec: ModelSpec, vision: Vision) -> MapRules:
        side = _wide(vision).patch_px
        return MapRules("each", ResizedCells(side, 1, side**2, vision.image_tokens * side**2, 1, 200))

    def kept_cells(
        self, spec: ModelSpec, hw: tuple[int, int], sink_logits: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.bool_] | None:
        return None

    def kept_source(self, spec: ModelSpec, seen_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
        return None


def _wide(vision: Vision) -> WideSpec:
    assert isinstance(vision, WideSpec)
    return vision


def _patches(picture: Image.Image, hw: tuple[int, int], patch_px: int) -> VisionInputs:
    """(1,h*w,3*P*P) in -1..1, and where each cell is, (1,h*w,2) in 0..1."""
    rows, columns = hw
    pixels = np.asarray(picture.resize((columns * patch_px, rows * patch_px), Image.Resampling.BILINEAR), np.float32)
    cells = pixels.reshape(rows, patch_px, columns, patch_px, 3).transpose(0, 2, 1, 3, 4)
    places = np.stack(np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij"), axis=-1)
    return {
        "patches": (cells.reshape(1, rows * columns, -1) / 127.5 - 1).astype(np.float32),
        "places": places.reshape(1, rows * columns, 2).astype(np.float32),
    }


FAMILY: Family = Wide()
