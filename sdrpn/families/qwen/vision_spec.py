"""What Qwen2.5-VL and Qwen3-VL see with: a tower over patches of a picture of any size, and a merger. No tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar, get_args

from sdrpn.errors import BadInput
from sdrpn.families.family import Resize
from sdrpn.families.qwen.grid import ResizedGrid
from sdrpn.families.qwen.resize import PixelBudget, rounded_wh
from sdrpn.method.spec import ModelSpec, Vision, require_divisible, require_positive

__all__ = [
    "LEAST_IMAGE_TOKENS",
    "Qwen3Vision",
    "Qwen25Vision",
    "QwenVision",
    "qwen_vision_of",
    "with_image_tokens",
    "with_resize",
]

LEAST_IMAGE_TOKENS = 4  # the official pipeline's least: a map needs cells to choose among
_MOST_SIDE = 4096
_CHANNELS = 3
_Some = TypeVar("_Some", bound="QwenVision")


@dataclass(frozen=True, kw_only=True)
class QwenVision:
    """What both towers have. A patch is `patch_size_px` a side; `merge` x `merge` patches make one image token."""

    family: ClassVar[str] = ""

    patch_size_px: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    least_pixels: int  # of the resized picture
    most_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    merge: int = 2
    frames: int = 2  # that a patch is deep; a still picture is repeated
    resize: Resize = "once"

    def __post_init__(self) -> None:
        require_positive(self, "patch_size_px", "width", "layers", "heads", "mlp_width")
        for name in ("merge", "frames"):
            _require_between(name, getattr(self, name), 1, 16)
        require_divisible("vision heads", self.heads, "vision width", self.width)
        if self.head_dim % 4:
            raise BadInput(
                f"head_dim of the vision tower is {self.head_dim}; its rotary embedding over rows and columns needs a "
                "multiple of 4"
            )
        for name in ("image_mean", "image_std"):
            _require_channels(name, getattr(self, name))
        if self.resize not in get_args(Resize):
            raise BadInput(f"resize is {str(self.resize)[:40]!r}; expected {' or '.join(get_args(Resize))}")
        _ = self.budget  # checks the pixels

    @property
    def head_dim(self) -> int:
        """d, channels of a head."""
        return self.width // self.heads

    @property
    def cell_px(self) -> int:
        """Side of an image token's cell in the resized picture."""
        return self.patch_size_px * self.merge

    @property
    def smallest_px(self) -> int:
        """A picture with a shorter side is refused."""
        return 1

    @property
    def patch_numbers(self) -> int:
        """Numbers of a patch of a still picture."""
        return _CHANNELS * self.patch_size_px**2

    @property
    def merged_width(self) -> int:
        """What a merger multiplies: the patches of an image token side by side."""
        return self.width * self.merge**2

    @property
    def budget(self) -> PixelBudget:
        """How large pictures and crops become."""
        return PixelBudget(self.cell_px, self.least_pixels, self.most_pixels, self.smallest_px)

    @property
    def image_tokens(self) -> int:
        """The most tokens that a picture, or a crop of it, becomes."""
        return self.budget.most_cells

    def grid(self, image_wh: tuple[int, int]) -> ResizedGrid:
        """The cells of the image grid over a picture of this size. Raises BadImage for one too small or too long."""
        return ResizedGrid(image_wh, self.budget, self.resize)

    def picture_sizes(self, image_wh: tuple[int, int]) -> Sequence[tuple[int, int]]:
        """The sizes (width, height) to which a picture is resized, one after the other. Raises BadImage."""
        if self.resize == "once":
            return (self.budget.size_wh(image_wh),)
        first = rounded_wh(image_wh)
        return first, self.budget.size_wh(first)

    def crop_sizes(self, crop_wh: tuple[int, int]) -> Sequence[tuple[int, int]]:
        """The same for a crop, which has the whole budget for itself."""
        return (self.budget.size_wh(crop_wh),)


@dataclass(frozen=True, kw_only=True)
class Qwen25Vision(QwenVision):
    """Qwen2.5-VL: RMS norms, a gated MLP, attention within windows except in `full_layers`."""

    family: ClassVar[str] = "qwen2.5-vl"

    window_px: int = 112  # side of a window in the resized picture
    full_layers: tuple[int, ...] = (7, 15, 23, 31)
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_between("window_px", self.window_px, self.cell_px, _MOST_SIDE)
        _require_layers("full_layers", self.full_layers, self.layers)

    @property
    def smallest_px(self) -> int:
        """One cell: the official processor refuses less, and what it was trained on was never smaller."""
        return self.cell_px

    @property
    def window_cells(self) -> int:
        """Image tokens on a side of a window."""
        return self.window_px // self.merge // self.patch_size_px

    @property
    def window_patches(self) -> int:
        """K, slots of a window."""
        return (self.window_cells * self.merge) ** 2


@dataclass(frozen=True, kw_only=True)
class Qwen3Vision(QwenVision):
    """Qwen3-VL: layer norms, a learned table of positions, features of several layers for the LLM (DeepStack)."""

    family: ClassVar[str] = "qwen3-vl"

    position_side: int = 48  # G: the table has G x G entries
    deepstack_layers: tuple[int, ...] = (8, 16, 24)  # feature j comes from behind this layer, for LLM layer j
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_between("position_side", self.position_side, 1, _MOST_SIDE)
        _require_layers("deepstack_layers", self.deepstack_layers, self.layers)


def qwen_vision_of(model: ModelSpec | Vision) -> Qwen25Vision | Qwen3Vision:
    """The vision spec of a model of either family."""
    vision = model.vision if isinstance(model, ModelSpec) else model
    assert isinstance(vision, (Qwen25Vision, Qwen3Vision))
    return vision


def with_image_tokens(vision: _Some, least: int, most: int) -> _Some:
    """The same tower with another budget. Raises BadInput for fewer than 4 tokens, or a least above the most."""
    if not LEAST_IMAGE_TOKENS <= least <= most:
        raise BadInput(
            f"the least and the most image tokens are {least} and {most}; expected {LEAST_IMAGE_TOKENS} <= least <= "
            "most"
        )
    area = vision.cell_px**2
    return dataclasses.replace(vision, least_pixels=least * area, most_pixels=most * area)


def with_resize(vision: _Some, resize: Resize) -> _Some:
    """The same tower for pictures that are resized in another way. Raises BadInput for an unknown one."""
    return dataclasses.replace(vision, resize=resize)


def _require_between(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadInput(f"{name} is {repr(value)[:40]}; expected a whole number from {least} to {most}")


def _require_layers(name: str, layers: tuple[int, ...], count: int) -> None:
    if list(layers) != sorted(set(layers)) or not all(0 <= layer < count for layer in layers):
        raise BadInput(f"{name} are {str(list(layers))[:80]}; expected rising numbers from 0 to {count - 1}")


def _require_channels(name: str, values: tuple[float, ...]) -> None:
    least = 0.0 if name == "image_mean" else math.ulp(0.0)
    if len(values) != _CHANNELS or not all(least <= value < math.inf for value in values):
        raise BadInput(f"{name} is {str(values)[:80]}; expected three numbers, none below 0 and no deviation of 0")
