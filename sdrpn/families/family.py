"""What a model family is asked for: everything that differs from one backbone to the next. Imports no family.

A family is data and small functions. What needs a library that most of the package does without (PyTorch, an ONNX
author), it names as "module:object"; the stage that needs the part imports it. So a family's folder holds all of
it, the runtime loads no PyTorch, and `sdrpn` never imports a stage.

Letters: S tokens, D width of the LLM, d channels of a head; h x w cells of an image's grid, one image token each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sdrpn.method.grids import Box
from sdrpn.method.roi import Decide, RoiPolicy
from sdrpn.method.spec import ModelSpec, PromptSpec, Vision

if TYPE_CHECKING:  # the protocol is read where neither is installed
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
    role: Literal["pixels", "look"] = "pixels"  # "look": what else the tower is told of a picture


@dataclass(frozen=True, eq=False)
class CropTokens:
    """What a crop inserts: its grid, and which cells of it (h,w); None: all of them."""

    hw: tuple[int, int]
    keep_cells: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a prompt in order: before the image, the image, every crop, after them."""

    before: int
    image_hw: tuple[int, int]
    crops: tuple[CropTokens, ...]
    after: int


@dataclass(frozen=True, eq=False)
class Positions:
    """What the rotary embedding turns the S tokens of a layout by, on each axis.

    `following`: the position of the first token that is generated, on all axes; each further one is one more.
    """

    rows: npt.NDArray[Any]  # (axes,S), whole numbers or fractions
    following: int


class Family(Protocol):
    """One kind of model. Methods are without state; what varies within a family is in the spec."""

    name: str
    # Parts, as "module:object".
    vision_author: str  # sdrpn.export's: an object of the protocol VisionAuthor there
    vision_module: str  # PyTorch: a module made of a ModelSpec, see sdrpn.model.vision
    checkpoint_opener: str  # sdrpn.checkpoint.request.CheckpointRequest -> sdrpn.checkpoint.Checkpoint
    random_writer: str  # writes a checkpoint of random weights: sdrpn.checkpoint.random.write_random_checkpoint
    # Figures
    usual_prompt_tokens: int  # of a short question, without those of the image: what engines are tuned for
    # Attention of the sink heads from which on a cell is a sink, where labels are made with such heads.
    label_sink_limit: float

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's config.json describes a model of this family."""

    def vision_type(self) -> type[Any]:
        """The frozen dataclass that `ModelSpec.vision` is, as a manifest holds it: a `Vision`."""

    def vision_shapes(self, spec: ModelSpec) -> Shapes:
        """The canonical names of the tensors between pixels and the LLM, and their shapes."""

    def described(self, vision: Vision) -> Sequence[tuple[str, str]]:
        """What `sdrpn inspect` shows of it: rows of a name and a text."""

    def vision_layers(self, vision: Vision) -> int:
        """Attentions of the vision graph."""

    def look_numbers(self, vision: Vision) -> int:
        """How many numbers the vision graph takes for one look, at most."""

    def vision_inputs(self, spec: ModelSpec) -> Sequence[GraphTensor]:
        """What the vision graph takes; it gives image_embeds (images, h*w, D), each look's tokens in one row."""

    def look_extents(self, spec: ModelSpec) -> Mapping[str, tuple[int, int, int]]:
        """Least, usual and most of each dynamic dimension of the vision graph but `images`: what engines are made for.

        Of one run of the graph, which may encode several looks, as `vision_inputs` says.
        """

    def square(self, vision: Vision) -> SquareVision | None:
        """The vision spec where every picture is one square of pixels: the runtime prepares such itself."""

    def first_look(self, picture: Image.Image, vision: Vision) -> VisionInputs:
        """The inputs of the vision graph for an upright RGB picture."""

    def crop_look(self, picture: Image.Image, box_xyxy_px: Box, vision: Vision) -> VisionInputs:
        """And for a part of it."""

    def prompt(self, tokenizer: Tokenizer, spec: PromptSpec, question: str) -> Prompt:
        """The token ids on both sides of the image. Raises BadInput for a question that cannot be asked."""

    def positions(self, layout: Layout) -> Positions | None:
        """Of both passes: what stands before the crops has the same positions in either. None: token i is at i."""

    def axis_of(self, spec: ModelSpec) -> npt.NDArray[np.int64] | None:
        """(d/2,): the axis of positions that each pair of channels turns by. None: there is one axis."""

    def policy(self, spec: ModelSpec) -> RoiPolicy:
        """Of the official evaluation: by what a model of this kind looks that has no policy of its own."""

    def decide(self, policy: RoiPolicy, vision: Vision) -> Decide:
        """From RoI logits (h,w) and the image's size to crops."""
