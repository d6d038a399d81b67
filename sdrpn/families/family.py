"""The interface of a model family: everything that differs from one backbone to the next. Imports no family.

A family is data and small functions. Parts that need a library that is not always installed (PyTorch, the ONNX
author) are named as "module:object"; the stage that needs the part imports it. So a family's folder is complete, the
runtime loads no PyTorch, and `sdrpn` never imports a stage.

Letters: S tokens, D width of the LLM, d channels of a head; h x w cells of an image's grid, one image token each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sdrpn.method.grids import Box, ImageGrid
from sdrpn.method.map_rules import MapRules
from sdrpn.method.preset import Preset
from sdrpn.method.recipe import HeadTable, Recipe
from sdrpn.method.roi import Crop, PolicyDecide, RoiPolicy
from sdrpn.method.spec import AskedScheme, ModelSpec, RoiLoss, RpnSpec, Vision

if TYPE_CHECKING:  # neither needs to be installed to import the protocol
    from PIL import Image
    from tokenizers import Tokenizer

    from sdrpn.images.patches import PatchedVision
    from sdrpn.images.pixels import SquareVision
    from sdrpn.text.prompt import Pieces, Prompt
    from sdrpn.text.turns import Turn

__all__ = [
    "AroundCrop",
    "CropTokens",
    "Family",
    "GraphTensor",
    "Layout",
    "Positions",
    "Resize",
    "Shapes",
    "Span",
    "TowerLoad",
    "VisionInputs",
]

Span: TypeAlias = int | tuple[int, int]  # so many tokens of text, or the (h,w) tokens of an image
Shapes: TypeAlias = dict[str, tuple[int, ...]]
VisionInputs: TypeAlias = Mapping[str, npt.NDArray[Any]]
# How a picture comes to the size of its grid: resized once, or twice as the official pipeline does it.
Resize: TypeAlias = Literal["once", "official"]


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph; a text in `dims` is a dynamic dimension."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    # "look": a further input of the tower; "deepstack": features of the image tokens that go into an early layer
    role: Literal["pixels", "look", "image_embeds", "deepstack"] = "pixels"


@dataclass(frozen=True)
class TowerLoad:
    """What the vision graph holds at once for one run of it.

    rows: at most; row_values: copies of the residual stream, projections and the MLP's values of one row
    attended, heads: the rows that a row may attend to at once, in each of so many heads
    """

    rows: int
    row_values: int
    attended: int
    heads: int


@dataclass(frozen=True, eq=False)
class CropTokens:
    """The tokens that a crop inserts: its grid, and the kept cells (h,w); None: all of them.

    box_cells: the cells of the image that it shows; None: not known
    """

    hw: tuple[int, int]
    keep_cells: npt.NDArray[np.bool_] | None = None
    box_cells: Box | None = None

    @classmethod
    def of(cls, crop: Crop, grid: ImageGrid) -> CropTokens:
        """Those of a crop of the image with this grid."""
        box = crop.box_xyxy_px
        return cls(crop.grid_hw or grid.crop_hw(box), crop.keep_cells, crop.box_cells or grid.box_cells_from_px(box))


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a prompt in order: before the image, the image, the crops with the ids around them, after them.

    before, after: of the prompt alone
    keep_source: (h*w,) the tokens of the image that stay; None: all of them
    """

    before: int
    image_hw: tuple[int, int]
    crops: tuple[CropTokens, ...]
    after: int
    keep_source: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class AroundCrop:
    """The ids that are inserted with a crop, in front of its tokens and behind them."""

    leading: tuple[int, ...] = ()
    trailing: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.leading) + len(self.trailing)


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of the S tokens of a layout that are kept, for the rotary embedding, on each axis.

    `following`: position of the first generated token, on all axes; each further token adds one.
    """

    rows: npt.NDArray[Any]  # (axes,S), integers or fractions
    following: int


class Family(Protocol):
    """One kind of model. Methods have no state; what varies within a family is in the spec."""

    name: str
    # Parts, as "module:object".
    vision_author: str  # sdrpn.export's: an object of the protocol VisionAuthor there
    vision_module: str  # PyTorch: a module made of a ModelSpec, see sdrpn.model.vision
    checkpoint_opener: str  # sdrpn.checkpoint.request.CheckpointRequest -> sdrpn.checkpoint.Checkpoint
    random_writer: str  # writes a checkpoint of random weights: sdrpn.checkpoint.random.write_random_checkpoint
    # Defaults.
    usual_prompt_tokens: int  # tokens of a short question, without the image: what engines are tuned for
    # Attention of the sink heads from which on a cell is a sink, where labels are made with such heads.
    label_sink_limit: float
    label_rule: str  # how attention is cleaned into labels: a name from `sdrpn.labels.denoise.RULES`

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's config.json describes a model of this family."""

    @property
    def prompt_names(self) -> Collection[str]:
        """What `PromptSpec.template` may say besides a chat template: prompts that the family knows by name."""

    def vision_type(self) -> type[Any]:
        """The frozen dataclass of `ModelSpec.vision`, as in a manifest: a `Vision`."""

    def vision_shapes(self, spec: ModelSpec) -> Shapes:
        """The canonical names of the tensors between pixels and the LLM, and their shapes."""

    def described(self, vision: Vision) -> Sequence[tuple[str, str]]:
        """Rows (name, text) for `sdrpn inspect`."""

    def vision_layers(self, vision: Vision) -> int:
        """The number of attention layers of the vision graph."""

    def look_numbers(self, vision: Vision) -> int:
        """The most input values that the vision graph takes for one look."""

    def tower_load(self, vision: Vision) -> TowerLoad:
        """What memory the tower takes while it encodes the largest look."""

    def most_crops(self, vision: Vision) -> int:
        """How many parts of a picture are looked at again."""

    def shapes(self) -> Mapping[str, ModelSpec]:
        """Published models by name, to plan for before a checkpoint is there."""

    def assumed(self, shape: str) -> Sequence[str]:
        """What is not known of one of these models and was assumed, for people: a checkpoint may differ."""

    def vision_inputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """The vision graph's inputs."""

    def vision_outputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """Its outputs: image_embeds (images, h*w, D), one entry per look, and features of the same shape."""

    def deepstack(self, vision: Vision) -> int:
        """The number of these features: number j is added to the rows behind layer j of the trunk."""

    def look_extents(self, spec: ModelSpec) -> Mapping[str, tuple[int, int, int]]:
        """Least, usual and most of each dynamic dimension of the vision graph but `images`: what engines are made for.

        Of one run of the graph, which may encode several looks, as `vision_inputs` says.
        """

    def with_image_tokens(self, vision: Vision, least: int, most: int) -> Vision:
        """The same tower with another budget. Raises BadInput for an impossible one, or where the number is fixed."""

    def with_resize(self, vision: Vision, resize: Resize) -> Vision:
        """The same tower with pictures resized in this way. Raises BadInput where there is no other than its own."""

    def square(self, vision: Vision) -> SquareVision | None:
        """The vision spec if every picture is one square of pixels, which the runtime prepares itself; else None."""

    def patched(self, vision: Vision) -> PatchedVision | None:
        """The vision spec if pixels enter as patches of a resized picture, which the runtime prepares; else None.

        They are `pixel_values`, as in `sdrpn.images.patches`; what goes with them is in `look_tables`.
        """

    def look_tables(self, hw: tuple[int, int], vision: Vision) -> VisionInputs:
        """The inputs of the vision graph besides patches, for a look of h x w image tokens."""

    def first_look(self, picture: Image.Image, vision: Vision) -> VisionInputs:
        """The inputs of the vision graph for an upright RGB picture."""

    def crop_look(self, picture: Image.Image, box_xyxy_px: Box, vision: Vision) -> VisionInputs:
        """The same for a crop of it."""

    def seen_picture(self, picture: Image.Image, vision: Vision) -> Image.Image:
        """What the first look takes of an upright RGB picture: all that the grid covers, borders too, in its pixels."""

    def blank_colour(self, vision: Vision) -> tuple[int, int, int]:
        """RGB of a picture without content: the nearest to 0 for the vision tower."""

    def prompt(self, tokenizer: Tokenizer, spec: ModelSpec, question: str) -> Prompt:
        """The token ids on both sides of the image. Raises BadInput for a question that cannot be asked."""

    def chat(self, tokenizer: Tokenizer, spec: ModelSpec, turns: Sequence[Turn]) -> Pieces:
        """The token ids of a conversation, cut at its images; the last turn is a question. Raises BadInput."""

    def around_crop(self, spec: ModelSpec, ids_before: Sequence[int], ids_after: Sequence[int]) -> AroundCrop:
        """What is inserted with a crop, between the image and the ids after it."""

    def positions(self, spec: ModelSpec, layout: Layout) -> Positions | None:
        """Positions for both passes: tokens before the crops have the same ones in either. None: token i is at i."""

    def positions_of_spans(self, spans: Sequence[Span]) -> Positions | None:
        """Positions of any number of images and texts in order, as of a first pass. None: token i is at i."""

    def axis_of(self, spec: ModelSpec) -> npt.NDArray[np.int64] | None:
        """(d/2,): the position axis of each pair of channels. None: there is one axis."""

    def policy(self, spec: ModelSpec) -> RoiPolicy:
        """The policy of the official evaluation, for models of this kind without their own; of a gate, too."""

    @property
    def policy_parts(self) -> Collection[str]:
        """The parts of a `RoiPolicy` that `decide` goes by; what others say is not used."""

    def preset(self, spec: ModelSpec, task: str) -> Preset:
        """The official evaluation's figures for a kind of question. Raises BadInput where there are none."""

    def head_tables(self) -> Mapping[str, HeadTable]:
        """The official choices of grounding heads, by name."""

    def recipes(self) -> Mapping[str, Recipe]:
        """The official trainings of RPNs, by name, besides those that `sdrpn.train.options` has."""

    def trained_rpn(self, layers: int, *, loss: RoiLoss = "bce", scheme: AskedScheme = "auto") -> RpnSpec:
        """The RPN that is trained for such a model, without a gate. Raises BadInput for a scheme that it cannot have.

        scheme: "auto": the family's usual one
        """

    def decide(self, policy: RoiPolicy, spec: ModelSpec) -> PolicyDecide:
        """From RoI logits (h,w) and the image's size to crops; sinks are known where the RPN has a `sink_query`."""

    def map_rules(self, spec: ModelSpec, vision: Vision) -> MapRules:
        """What `decide` does, as data. `vision`: the model's own, or with another budget."""

    def kept_cells(
        self, spec: ModelSpec, hw: tuple[int, int], sink_logits: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.bool_] | None:
        """Which cells of a map (h,w) `decide` may choose, False for sinks; None: all.

        sink_logits: (h,w), how much the first token looks at each; None where the RPN has no `sink_query`
        """

    def kept_source(self, spec: ModelSpec, seen_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
        """Which image tokens stay in the second pass, (h*w,); None: all. Asked above the RPN's `prune_above` tokens.

        seen_logits: (h*w,) the highest logit at each image token of any token after the image, mean over heads
        """
