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

from sdrpn.method.grids import Box
from sdrpn.method.roi import Decide, RoiPolicy
from sdrpn.method.spec import ModelSpec, Vision

if TYPE_CHECKING:  # neither needs to be installed to import the protocol
    from PIL import Image
    from tokenizers import Tokenizer

    from sdrpn.images.pixels import SquareVision
    from sdrpn.text.prompt import Prompt

__all__ = ["CropTokens", "Family", "GraphTensor", "Layout", "Positions", "Shapes", "VisionInputs"]

Shapes: TypeAlias = dict[str, tuple[int, ...]]
VisionInputs: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph; a text in `dims` is a dynamic dimension."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    role: Literal["pixels", "look"] = "pixels"  # "look": a further input of the tower


@dataclass(frozen=True, eq=False)
class CropTokens:
    """The tokens that a crop inserts: its grid, and the kept cells (h,w); None: all of them."""

    hw: tuple[int, int]
    keep_cells: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a prompt in order: before the image, the image, the crops, after them."""

    before: int
    image_hw: tuple[int, int]
    crops: tuple[CropTokens, ...]
    after: int


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of the S tokens of a layout, for the rotary embedding, on each axis.

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

    def vision_inputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """The vision graph's inputs; its output is image_embeds (images, h*w, D), one entry per look."""

    def look_extents(self, spec: ModelSpec) -> Mapping[str, tuple[int, int, int]]:
        """Least, usual and most of each dynamic dimension of the vision graph but `images`: what engines are made for.

        Of one run of the graph, which may encode several looks, as `vision_inputs` says.
        """

    def square(self, vision: Vision) -> SquareVision | None:
        """The vision spec if every picture is one square of pixels, which the runtime prepares itself; else None."""

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

    def positions(self, layout: Layout) -> Positions | None:
        """Positions for both passes: tokens before the crops have the same ones in either. None: token i is at i."""

    def axis_of(self, spec: ModelSpec) -> npt.NDArray[np.int64] | None:
        """(d/2,): the position axis of each pair of channels. None: there is one axis."""

    def policy(self, spec: ModelSpec) -> RoiPolicy:
        """The policy of the official evaluation, for models of this kind without their own."""

    def decide(self, policy: RoiPolicy, vision: Vision) -> Decide:
        """From RoI logits (h,w) and the image's size to crops."""
