"""Qwen2.5-VL and Qwen3-VL as families: pictures of any shape, three axes of positions. Imports no PyTorch."""

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
from sdrpn.families.qwen.config import family_name
from sdrpn.families.qwen.grid import LEAST_CROP_PX
from sdrpn.families.qwen.positions import axes_of, positions_of_spans, positions_on_source
from sdrpn.families.qwen.presets import preset
from sdrpn.families.qwen.pruning import PRUNED_ABOVE_TOKENS, kept_source_cells
from sdrpn.families.qwen.resize import MOST_RATIO
from sdrpn.families.qwen.sinks import border_kept, not_sinks
from sdrpn.families.qwen.tensors import vision_shapes
from sdrpn.families.qwen.tower_inputs import most_windows, tower_inputs
from sdrpn.families.qwen.vision_spec import (
    LEAST_IMAGE_TOKENS,
    Qwen3Vision,
    Qwen25Vision,
    QwenVision,
    qwen_vision_of,
    with_image_tokens,
    with_resize,
)
from sdrpn.families.qwen.zoom import decide_zoom
from sdrpn.images.patches import PatchedVision, crop_patches, picture_patches, resized
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box, cell_count
from sdrpn.method.map_rules import MapRules, ResizedCells
from sdrpn.method.preset import Preset
from sdrpn.method.recipe import HeadTable, Recipe
from sdrpn.method.roi import PolicyDecide, RoiDecision, RoiPolicy
from sdrpn.method.spec import AskedScheme, ModelSpec, RoiLoss, RpnSpec, Scheme, Vision

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sdrpn.text.prompt import Pieces, Prompt
    from sdrpn.text.turns import Turn

__all__ = ["QWEN3", "QWEN25", "Qwen"]


class Qwen:
    """See `Family`; made for either of the two."""

    vision_author = "sdrpn.export.qwen_vision:AUTHOR"
    vision_module = "sdrpn.families.qwen.torch_module:QwenVisionModule"
    checkpoint_opener = "sdrpn.families.qwen.checkpoint:open_qwen_checkpoint"
    random_writer = "sdrpn.families.qwen.random:write_random"
    usual_prompt_tokens = 48  # system turn, a question of one line, and the short-answer suffix
    label_sink_limit = 1e-2  # Q-Zoom's training scripts
    label_rule = "q-zoom"

    def __init__(self, vision: type[Qwen25Vision | Qwen3Vision]) -> None:
        self.name, self._vision = vision.family, vision

    def claims(self, config: Mapping[str, Any]) -> bool:
        """By model_type."""
        return family_name(config) == self.name

    @property
    def prompt_names(self) -> Collection[str]:
        """None: prompts are chat templates."""
        return ()

    def vision_type(self) -> type[Any]:
        """See `Family`."""
        return self._vision

    def vision_shapes(self, spec: ModelSpec) -> Shapes:
        """See `Family`."""
        return vision_shapes(spec)

    def described(self, vision: Vision) -> Sequence[tuple[str, str]]:
        """See `Family`."""
        own = qwen_vision_of(vision)
        area = own.cell_px**2
        if isinstance(own, Qwen3Vision):
            detail = f"features of layers {_listed(own.deepstack_layers)} for the LLM"
        else:
            detail = f"windows of {own.window_px} px but in layers {_listed(own.full_layers)}"
        return (
            (
                "image",
                f"any shape, {own.least_pixels // area} to {own.most_pixels // area} tokens of {own.cell_px} px a side",
            ),
            ("vision tower", f"{own.layers} layers, width {own.width}; {detail}"),
        )

    def vision_layers(self, vision: Vision) -> int:
        """See `Family`."""
        return qwen_vision_of(vision).layers

    def tower_load(self, vision: Vision) -> TowerLoad:
        """One look at a time; with windows, queries, keys and values are gathered into them, beside the originals."""
        own = qwen_vision_of(vision)
        patches = own.image_tokens * own.merge**2
        windowed = isinstance(own, Qwen25Vision)
        values = (10 if windowed else 7) * own.width + (2 if windowed else 1) * own.mlp_width
        return TowerLoad(patches, values, patches, own.heads)

    def most_crops(self, vision: Vision) -> int:
        """There is one box."""
        return 1

    def shapes(self) -> Mapping[str, ModelSpec]:
        """See `shapes.py`."""
        from sdrpn.families.qwen.shapes import SHAPES_3, SHAPES_25

        return SHAPES_3 if self._vision is Qwen3Vision else SHAPES_25

    def assumed(self, shape: str) -> Sequence[str]:
        """See `shapes.py`."""
        from sdrpn.families.qwen.shapes import ASSUMED

        return ASSUMED[shape]

    def vision_inputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """One picture or several, their patches one after another."""
        vision = qwen_vision_of(spec)
        table = ("patches", vision.head_dim // 2)
        tensors = [
            GraphTensor("pixel_values", "float32", ("patches", vision.patch_numbers)),
            GraphTensor("rope_cos", "float32", table, "look"),
            GraphTensor("rope_sin", "float32", table, "look"),
        ]
        if isinstance(vision, Qwen25Vision):
            slots = ("windows", vision.window_patches)
            tensors += [
                GraphTensor("window_rows", "int64", slots, "look"),
                GraphTensor("window_valid", "bool", slots, "look"),
                GraphTensor("patch_slot", "int64", ("patches",), "look"),
            ]
        else:
            tensors += [
                GraphTensor("position_rows", "int64", (4, "patches"), "look"),
                GraphTensor("position_weights", "float32", (4, "patches"), "look"),
            ]
        return tensors

    def vision_outputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """All pictures side by side, with a leading axis of 1, as the LLM takes rows."""
        dims = (1, f"patches/{qwen_vision_of(spec).merge ** 2}", spec.llm.width)
        features = [
            GraphTensor(f"deepstack.{number}", "float32", dims, "deepstack")
            for number in range(self.deepstack(spec.vision))
        ]
        return [GraphTensor("image_embeds", "float32", dims, "image_embeds"), *features]

    def deepstack(self, vision: Vision) -> int:
        """Qwen3-VL's."""
        own = qwen_vision_of(vision)
        return len(own.deepstack_layers) if isinstance(own, Qwen3Vision) else 0

    def with_image_tokens(self, vision: Vision, least: int, most: int) -> Vision:
        """See `Family`."""
        return with_image_tokens(qwen_vision_of(vision), least, most)

    def with_resize(self, vision: Vision, resize: Resize) -> Vision:
        """See `Family`."""
        return with_resize(qwen_vision_of(vision), resize)

    def look_numbers(self, vision: Vision) -> int:
        """See `Family`."""
        own = qwen_vision_of(vision)
        of_a_patch = own.patch_numbers + own.head_dim
        if isinstance(own, Qwen25Vision):
            extra = own.image_tokens * own.merge**2 + 2 * most_windows(own) * own.window_patches
        else:
            extra = 8 * own.image_tokens * own.merge**2
        return own.image_tokens * own.merge**2 * of_a_patch + extra

    def look_extents(self, spec: ModelSpec) -> Mapping[str, tuple[int, int, int]]:
        """From the fewest tokens that may be asked for to the budget's most."""
        vision = qwen_vision_of(spec)
        patches = vision.merge**2
        least, most = min(LEAST_IMAGE_TOKENS, vision.image_tokens), vision.image_tokens
        usual = min(max(least, vision.most_pixels // vision.cell_px**2), most)
        extents = {"patches": (least * patches, usual * patches, most * patches)}
        if isinstance(vision, Qwen25Vision):
            across = -(-round(usual**0.5) // vision.window_cells)
            windows = most_windows(vision)
            extents["windows"] = 1, min(across**2, windows), windows
        return extents

    def square(self, vision: Vision) -> SquareVision | None:
        """Never."""
        return None

    def patched(self, vision: Vision) -> PatchedVision | None:
        """Always."""
        return qwen_vision_of(vision)

    def look_tables(self, hw: tuple[int, int], vision: Vision) -> VisionInputs:
        """See `tower_inputs`."""
        return tower_inputs(hw, qwen_vision_of(vision))

    def first_look(self, picture: Image.Image, vision: Vision) -> VisionInputs:
        """See `Family`."""
        own = qwen_vision_of(vision)
        return _look(picture_patches(picture, own), own.grid(picture.size).hw, own)

    def crop_look(self, picture: Image.Image, box_xyxy_px: Box, vision: Vision) -> VisionInputs:
        """See `Family`."""
        own = qwen_vision_of(vision)
        return _look(crop_patches(picture, box_xyxy_px, own), own.grid(picture.size).crop_hw(box_xyxy_px), own)

    def seen_picture(self, picture: Image.Image, vision: Vision) -> Image.Image:
        """The whole picture, resized to whole cells."""
        for size in qwen_vision_of(vision).picture_sizes(picture.size):
            picture = resized(picture, size)
        return picture

    def blank_colour(self, vision: Vision) -> tuple[int, int, int]:
        """The mean."""
        red, green, blue = (round(255 * mean) for mean in qwen_vision_of(vision).image_mean)
        return red, green, blue

    def prompt(self, tokenizer: Tokenizer, spec: ModelSpec, question: str) -> Prompt:
        """By the checkpoint's chat template."""
        from sdrpn.families.qwen.prompt import qwen_prompt

        return qwen_prompt(tokenizer, spec, question)

    def chat(self, tokenizer: Tokenizer, spec: ModelSpec, turns: Sequence[Turn]) -> Pieces:
        """As `prompt`."""
        from sdrpn.families.qwen.prompt import qwen_pieces

        return qwen_pieces(tokenizer, spec, turns)

    def around_crop(self, spec: ModelSpec, ids_before: Sequence[int], ids_after: Sequence[int]) -> AroundCrop:
        """A vision part of its own behind the image's, or, SD-RPN's, inside it."""
        if not ids_before or not ids_after:
            raise BadInput("the prompt has no ids on one side of the image; expected those that start and end it")
        start, end = ids_before[-1], ids_after[0]
        return AroundCrop((end, start)) if _scheme(spec) == "q-zoom" else AroundCrop((start,), (end,))

    def positions(self, spec: ModelSpec, layout: Layout) -> Positions | None:
        """On three axes; tokens that are left out leave a gap."""
        leading, trailing = (2, 0) if _scheme(spec) == "q-zoom" else (1, 1)
        spans: list[Span] = [layout.before, layout.image_hw]
        kept = [np.ones(layout.before, np.bool_), _cells_kept(layout.image_hw, layout.keep_source)]
        for crop in layout.crops:
            spans += [leading, crop.hw, trailing]
            around = np.ones(leading, np.bool_), np.ones(trailing, np.bool_)
            kept += [around[0], _cells_kept(crop.hw, crop.keep_cells), around[1]]
        found = positions_of_spans([*spans, layout.after])
        if spec.rpn is not None and spec.rpn.reuse_positions and len(layout.crops) == 1:
            (crop,) = layout.crops
            assert crop.box_cells is not None
            found = positions_on_source(layout.before, layout.image_hw, crop.box_cells, crop.hw, layout.after)
        every = np.concatenate([*kept, np.ones(layout.after, np.bool_)])
        return Positions(found.rows[:, every], found.following)

    def positions_of_spans(self, spans: Sequence[Span]) -> Positions | None:
        """On three axes."""
        return positions_of_spans(spans)

    def axis_of(self, spec: ModelSpec) -> npt.NDArray[np.int64] | None:
        """See `Family`."""
        return axes_of(spec)

    def policy(self, spec: ModelSpec) -> RoiPolicy:
        """The official evaluation's for questions about scenes, which most benchmarks share."""
        official = self.preset(spec, "scene")
        return RoiPolicy(official.threshold, min_cells=1, gate_threshold=official.gate_threshold)

    @property
    def policy_parts(self) -> Collection[str]:
        """There is one box, around all cells above the threshold."""
        return ("threshold", "gate_threshold")

    def preset(self, spec: ModelSpec, task: str) -> Preset:
        """See `presets.py`."""
        return preset(task, family=spec.vision.family, scheme=_scheme(spec), llm_width=spec.llm.width)

    def head_tables(self) -> Mapping[str, HeadTable]:
        """See `recipes.py`."""
        from sdrpn.families.qwen.recipes import HEADS_3, HEADS_25

        return HEADS_3 if self._vision is Qwen3Vision else HEADS_25

    def recipes(self) -> Mapping[str, Recipe]:
        """See `recipes.py`."""
        from sdrpn.families.qwen.recipes import RECIPES_3, RECIPES_25

        return RECIPES_3 if self._vision is Qwen3Vision else RECIPES_25

    def trained_rpn(self, layers: int, *, loss: RoiLoss = "bce", scheme: AskedScheme = "auto") -> RpnSpec:
        """Q-Zoom's, or SD-RPN's for Qwen2.5-VL."""
        is_3, chosen = self._vision is Qwen3Vision, "q-zoom" if scheme == "auto" else scheme
        if is_3 and chosen == "sd-rpn":
            raise BadInput("SD-RPN has no Qwen3-VL; expected the scheme q-zoom, or auto")
        return RpnSpec(
            layers,
            loss=loss,
            scheme=chosen,
            rotary=True,
            outer_norm=False,
            sink_query=is_3,
            prune_above=PRUNED_ABOVE_TOKENS if chosen == "sd-rpn" else 0,
        )

    def decide(self, policy: RoiPolicy, spec: ModelSpec) -> PolicyDecide:
        """The box around every cell above the threshold that is no sink."""
        scheme, grid_over = _scheme(spec), qwen_vision_of(spec).grid
        if policy.threshold < 0:
            raise BadInput(
                f"threshold is {policy.threshold:g}; expected a number between 0 and 1 for this model's map",
                options=("threshold",),
            )

        def decided(
            logits: npt.NDArray[np.float32],
            image_wh: tuple[int, int],
            sink_logits: npt.NDArray[np.float32] | None = None,
            /,
        ) -> RoiDecision:
            grid = grid_over(image_wh)
            kept = self.kept_cells(spec, grid.hw, sink_logits)
            return decide_zoom(logits, kept, grid, policy.threshold, scheme)

        return decided

    def map_rules(self, spec: ModelSpec, vision: Vision) -> MapRules:
        """One crop around all cells."""
        budget = qwen_vision_of(vision).budget
        cells = ResizedCells(
            cell_px=budget.cell_px,
            least_crop_px=LEAST_CROP_PX,
            least_px=budget.least,
            most_px=budget.most,
            smallest_side_px=max(1, budget.smallest_px),
            most_ratio=MOST_RATIO,
        )
        return MapRules("around", cells, masked=_scheme(spec) == "sd-rpn")

    def kept_cells(
        self, spec: ModelSpec, hw: tuple[int, int], sink_logits: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.bool_]:
        """See `sinks.py`."""
        return border_kept(hw, _scheme(spec)) if sink_logits is None else not_sinks(sink_logits)

    def kept_source(self, spec: ModelSpec, seen_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
        """See `Family`."""
        return None if spec.rpn is None else kept_source_cells(seen_logits[None], spec.rpn.prune_above)


def _scheme(spec: ModelSpec) -> Scheme:
    return "q-zoom" if spec.rpn is None else spec.rpn.scheme


def _cells_kept(hw: tuple[int, int], kept: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    return np.ones(cell_count(hw), np.bool_) if kept is None else kept.ravel()


def _look(patches: npt.NDArray[np.float32], hw: tuple[int, int], vision: QwenVision) -> VisionInputs:
    assert len(patches) == cell_count(hw) * vision.merge**2
    return {"pixel_values": patches, **tower_inputs(hw, vision)}


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


QWEN25: Family = Qwen(Qwen25Vision)
QWEN3: Family = Qwen(Qwen3Vision)
