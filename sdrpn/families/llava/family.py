"""LLaVA as a family: squares of one size, one axis of positions, SD-RPN's own rules. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
from sdrpn.families.llava.conversations import CONVERSATIONS
from sdrpn.families.llava.tensors import vision_shapes
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.images.image import base_picture, base_pixels, crop_pixels
from sdrpn.images.patches import PatchedVision
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.method.map_rules import MapRules, SquareCells
from sdrpn.method.preset import Preset
from sdrpn.method.recipe import HeadTable, Recipe
from sdrpn.method.roi import MAX_BBOX_CROPS, PolicyDecide, RoiPolicy, decide_by_policy
from sdrpn.method.spec import AskedScheme, ModelSpec, RoiLoss, RpnSpec, Vision
from sdrpn.method.usual_length import TOKENS_AFTER_IMAGE

if TYPE_CHECKING:
    from PIL import Image
    from tokenizers import Tokenizer

    from sdrpn.text.prompt import Pieces, Prompt
    from sdrpn.text.turns import Turn

__all__ = ["FAMILY", "Llava"]


class Llava:
    """See `Family`."""

    name = "llava"
    vision_author = "sdrpn.export.vision:AUTHOR"
    vision_module = "sdrpn.families.llava.torch_vision:VisionEncoder"
    checkpoint_opener = "sdrpn.families.llava.checkpoint:open_llava"
    random_writer = "sdrpn.families.llava.random:write_random"
    usual_prompt_tokens = 35 + TOKENS_AFTER_IMAGE  # before it: the usual conversation, up to its user
    label_sink_limit = 1e-3  # the official code's, of 576 tokens: of 144 even uniform attention is seven times this
    label_rule = "sd-rpn"

    def claims(self, config: Mapping[str, Any]) -> bool:
        """By the model_type of transformers and of LLaVA's own code; `sdrpn.checkpoint` explains other refusals."""
        return "llava" in str(config.get("model_type")) or "mm_vision_tower" in config

    @property
    def prompt_names(self) -> Collection[str]:
        """Conversations of LLaVA's training code."""
        return CONVERSATIONS

    def vision_type(self) -> type[Any]:
        """See `Family`."""
        return VisionSpec

    def vision_shapes(self, spec: ModelSpec) -> Shapes:
        """See `Family`."""
        return vision_shapes(spec)

    def described(self, vision: Vision) -> Sequence[tuple[str, str]]:
        """See `Family`."""
        clip = clip_of(vision)
        return (
            ("image", f"{clip.image_size_px}x{clip.image_size_px} px, {clip.grid_side}x{clip.grid_side} tokens"),
            ("vision tower", f"{clip.used_layers} of {clip.layers} layers, width {clip.width}"),
        )

    def vision_layers(self, vision: Vision) -> int:
        """See `Family`."""
        return clip_of(vision).used_layers

    def tower_load(self, vision: Vision) -> TowerLoad:
        """Two crops are encoded together."""
        clip = clip_of(vision)
        tokens = clip.image_tokens + 1
        return TowerLoad(2 * tokens, 7 * clip.width + clip.mlp_width, tokens, clip.heads)

    def most_crops(self, vision: Vision) -> int:
        """Up to two boxes."""
        return MAX_BBOX_CROPS

    def shapes(self) -> Mapping[str, ModelSpec]:
        """See `shapes.py`."""
        from sdrpn.families.llava.shapes import SHAPES

        return SHAPES

    def assumed(self, shape: str) -> Sequence[str]:
        """Nothing."""
        return ()

    def vision_inputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """Looks of one size are encoded together."""
        side = clip_of(spec.vision).image_size_px
        return (GraphTensor("pixel_values", "float32", ("images", 3, side, side)),)

    def vision_outputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """See `Family`."""
        dims = ("images", spec.vision.image_tokens, spec.llm.width)
        return (GraphTensor("image_embeds", "float32", dims, "image_embeds"),)

    def deepstack(self, vision: Vision) -> int:
        """None."""
        return 0

    def with_image_tokens(self, vision: Vision, least: int, most: int) -> Vision:
        """The number is fixed: it may be named."""
        if (least, most) == (vision.image_tokens, vision.image_tokens):
            return vision
        raise BadInput(
            f"image_tokens are {least} to {most}; this model turns every picture into {vision.image_tokens} tokens: "
            "leave them out",
            options=("image_tokens",),
        )

    def with_resize(self, vision: Vision, resize: Resize) -> Vision:
        """The official one is the only one."""
        if resize != "official":
            raise BadInput(
                f"resize is {resize!r}; this model's pictures are resized as the official pipeline does it: leave it "
                "out",
                options=("resize",),
            )
        return vision

    def look_numbers(self, vision: Vision) -> int:
        """See `Family`."""
        return 3 * clip_of(vision).image_size_px ** 2

    def look_extents(self, spec: ModelSpec) -> Mapping[str, tuple[int, int, int]]:
        """None: every look has the same shape."""
        return {}

    def square(self, vision: Vision) -> SquareVision | None:
        """Always."""
        return clip_of(vision)

    def patched(self, vision: Vision) -> PatchedVision | None:
        """Never: squares."""
        return None

    def look_tables(self, hw: tuple[int, int], vision: Vision) -> VisionInputs:
        """None."""
        return {}

    def first_look(self, picture: Image.Image, vision: Vision) -> VisionInputs:
        """See `Family`."""
        return {"pixel_values": base_pixels(picture, clip_of(vision))[None]}

    def crop_look(self, picture: Image.Image, box_xyxy_px: Box, vision: Vision) -> VisionInputs:
        """See `Family`."""
        return {"pixel_values": crop_pixels(picture, box_xyxy_px, clip_of(vision))[None]}

    def seen_picture(self, picture: Image.Image, vision: Vision) -> Image.Image:
        """R x R pixels."""
        return base_picture(picture, clip_of(vision))

    def blank_colour(self, vision: Vision) -> tuple[int, int, int]:
        """That of the borders."""
        return clip_of(vision).pad_colour

    def prompt(self, tokenizer: Tokenizer, spec: ModelSpec, question: str) -> Prompt:
        """By a conversation of LLaVA's training code, or the checkpoint's chat template."""
        from sdrpn.families.llava.prompt import build_prompt

        return build_prompt(tokenizer, spec.prompt, question)

    def chat(self, tokenizer: Tokenizer, spec: ModelSpec, turns: Sequence[Turn]) -> Pieces:
        """As `prompt`."""
        from sdrpn.families.llava.prompt import build_pieces

        return build_pieces(tokenizer, spec.prompt, turns)

    def around_crop(self, spec: ModelSpec, ids_before: Sequence[int], ids_after: Sequence[int]) -> AroundCrop:
        """Nothing."""
        return AroundCrop()

    def positions(self, spec: ModelSpec, layout: Layout) -> Positions | None:
        """Token i is at position i: inserted crop tokens move the tokens after them."""
        return None

    def positions_of_spans(self, spans: Sequence[Span]) -> Positions | None:
        """Token i is at position i."""
        return None

    def axis_of(self, spec: ModelSpec) -> npt.NDArray[np.int64] | None:
        """See `Family`."""
        return None

    def policy(self, spec: ModelSpec) -> RoiPolicy:
        """The official evaluation's; of a map that is a distribution, as `mse` trains it, half of its peak.

        Nobody has published a gate: one without a threshold of its own ends with the first look where it is likely
        that this is enough.
        """
        is_distribution = spec.rpn is not None and spec.rpn.loss == "mse"
        gate = 0.5 if spec.rpn is not None and spec.rpn.has_gate else None
        return RoiPolicy(-0.5, gate_threshold=gate) if is_distribution else RoiPolicy(gate_threshold=gate)

    @property
    def policy_parts(self) -> Collection[str]:
        """All of them."""
        return ("threshold", "upscale", "max_ratio", "min_cells", "max_share", "gate_threshold")

    def preset(self, spec: ModelSpec, task: str) -> Preset:
        """None: the published thresholds of LLaVA's models differ by their size and task, not by kind of question."""
        raise BadInput(f"the preset {task!r} is for Qwen2.5-VL and Qwen3-VL; give this model a threshold, or nothing")

    def head_tables(self) -> Mapping[str, HeadTable]:
        """The official code's choices for LLaVA-1.5."""
        return {
            "official-7b": HeadTable({14: (13, 24, 26)}, {2: range(32)}),
            "official-13b": HeadTable({16: (2, 21, 30), 15: (2,), 13: (21, 23, 26)}, {16: (17, 22)}),
        }

    def recipes(self) -> Mapping[str, Recipe]:
        """None: the defaults of a training are those of LLaVA-1.5-7B."""
        return {}

    def trained_rpn(self, layers: int, *, loss: RoiLoss = "bce", scheme: AskedScheme = "auto") -> RpnSpec:
        """SD-RPN's."""
        if scheme not in ("auto", "sd-rpn"):
            raise BadInput(f"the scheme {scheme} is for Qwen2.5-VL and Qwen3-VL; expected sd-rpn, or auto")
        return RpnSpec(layers, loss=loss)

    def decide(self, policy: RoiPolicy, spec: ModelSpec) -> PolicyDecide:
        """Regions, boxes and masks of SD-RPN's evaluation."""
        return decide_by_policy(policy, spec.vision.grid)

    def map_rules(self, spec: ModelSpec, vision: Vision) -> MapRules:
        """Regions by the policy, on a square."""
        return MapRules("each", SquareCells(clip_of(vision).image_size_px))

    def kept_cells(
        self, spec: ModelSpec, hw: tuple[int, int], sink_logits: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.bool_] | None:
        """All of them."""
        return None

    def kept_source(self, spec: ModelSpec, seen_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
        """All of them."""
        return None


FAMILY: Family = Llava()
