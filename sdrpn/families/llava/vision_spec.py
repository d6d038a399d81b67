"""LLaVA's vision: a CLIP tower over one square, and a projector. Knows no tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sdrpn.errors import BadInput
from sdrpn.method.geometry import Fit, PaddedGrid
from sdrpn.method.spec import LlmSpec, ModelSpec, Vision, require_divisible, require_numbers, require_positive

__all__ = ["VisionSpec", "clip_of"]


@dataclass(frozen=True)
class VisionSpec:
    """A CLIP vision tower and its projector: a `Vision`."""

    family: ClassVar[str] = "llava"

    image_size_px: int  # R
    patch_size_px: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    select_layer: int = -2  # index into the hidden states, embeddings first
    projector_width: int = 0  # hidden width of the projector; 0: that of the LLM
    projector_layers: int = 2  # matrices, with a GELU between each two; 1: a linear projector
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    # How a picture becomes a square: padded, as in LLaVA and SD-RPN's training, or with the ends of its longer side cut
    # off, as in the processor of llava-hf checkpoints.
    fit: Fit = "pad"
    border: tuple[int, int, int] | None = None  # RGB of the padding; None: the mean

    def __post_init__(self) -> None:
        require_positive(
            self, "image_size_px", "patch_size_px", "width", "layers", "heads", "mlp_width", "projector_layers"
        )
        if self.fit not in get_args(Fit):
            raise BadInput(f"fit is {self.fit!r}; expected {' or '.join(get_args(Fit))}", options=("fit",))
        require_numbers(self, "layer_norm_eps", at_least=0.0)
        require_divisible("vision heads", self.heads, "vision width", self.width)
        require_divisible("patch_size_px", self.patch_size_px, "image_size_px", self.image_size_px)
        if not 1 <= self.used_layers <= self.layers:
            raise BadInput(
                f"select_layer {self.select_layer} of a vision tower with {self.layers} layers is not one of its "
                f"hidden states; expected -{self.layers} to -1"
            )
        _require_rgb("image_mean", self.image_mean, "three numbers from 0 to 1", lambda mean: 0 <= mean <= 1)
        _require_rgb("image_std", self.image_std, "three numbers above 0", lambda std: 0 < std < math.inf)
        if self.border is not None:
            whole = "three whole numbers from 0 to 255"
            _require_rgb("border", self.border, whole, lambda value: value in range(256))

    @property
    def grid_side(self) -> int:
        """G: cells of the image grid on a side."""
        return self.image_size_px // self.patch_size_px

    @property
    def image_tokens(self) -> int:
        """G*G."""
        return self.grid_side**2

    @property
    def used_layers(self) -> int:
        """Layers that run: those after the selected hidden state are not computed."""
        return self.layers + 1 + self.select_layer if self.select_layer < 0 else self.select_layer

    def grid(self, image_wh: tuple[int, int]) -> PaddedGrid:
        """The cells of the image grid over a picture of this size."""
        return PaddedGrid(image_wh, self.image_size_px, self.grid_side, self.fit)

    def projector_widths(self, llm: LlmSpec) -> tuple[int, ...]:
        """Widths of the projector: its input, and the output of each matrix."""
        hidden = self.projector_width or llm.width
        return (self.width, *[hidden] * (self.projector_layers - 1), llm.width)

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """RGB, 0..255, of the border that makes an image square: the mean, truncated (as LLaVA does)."""
        if self.border is not None:
            return self.border
        red, green, blue = (int(255 * mean) for mean in self.image_mean)
        return red, green, blue


def clip_of(model: ModelSpec | Vision) -> VisionSpec:
    """The vision spec of a model of this family."""
    vision = model.vision if isinstance(model, ModelSpec) else model
    assert isinstance(vision, VisionSpec)
    return vision


def _require_rgb(name: str, values: object, expected: str, is_good: Callable[[float], bool]) -> None:
    channels = values if isinstance(values, tuple) else ()
    if len(channels) != 3 or not all(type(value) in (int, float) and is_good(value) for value in channels):
        raise BadInput(f"{name} is {str(values)[:80]}; expected {expected}")
