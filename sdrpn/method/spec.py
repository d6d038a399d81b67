"""What a model is: sizes, special tokens, and where its layers are cut. Knows no tensors.

Letters used in shapes everywhere: B batch, S sequence, D width, H heads, V vocabulary, G grid side of
the image (cells), R image side (pixels), K layers below the tap, T layers of the RPN, L layers of the LLM.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sdrpn.errors import BadInput
from sdrpn.host.json_reader import REQUIRED, read_dataclass
from sdrpn.method.geometry import Fit, PaddedGrid
from sdrpn.method.grids import ImageGrid

__all__ = ["LlmSpec", "ModelSpec", "PromptSpec", "RopeScaling", "RpnSpec", "VisionSpec"]

# Some times what the largest models have: beyond it, listing the tensors of a model would take longer than finding out
# that they are not there, and tables by position more memory than anything else.
_MOST = {
    "image_size_px": 8192,
    "patch_size_px": 8192,
    "width": 2**17,
    "layers": 1024,
    "heads": 4096,
    "kv_heads": 4096,
    "head_dim": 2**14,
    "mlp_width": 2**20,
    "projector_layers": 64,
    "vocabulary": 2**24,
    "max_context": 2**20,
    "original_context": 2**20,
    "sliding_window": 2**53,
}

RoiLoss = Literal["bce", "focal", "mse"]

_MOST_TOKEN_ID = 2**31


@dataclass(frozen=True)
class VisionSpec:
    """A CLIP vision tower and the projector behind it."""

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
    projector_layers: int = 2  # matrices, a GELU between any two; 1: a linear projector
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    # How a picture becomes a square: padded as LLaVA does it and SD-RPN was trained, or the ends of its longer side cut
    # off as the processor of llava-hf checkpoints does it.
    fit: Fit = "pad"
    border: tuple[int, int, int] | None = None  # RGB of the padding; None: the mean

    def __post_init__(self) -> None:
        _require_positive(
            self, "image_size_px", "patch_size_px", "width", "layers", "heads", "mlp_width", "projector_layers"
        )
        if self.fit not in get_args(Fit):
            raise BadInput(f"fit is {self.fit!r}; expected {' or '.join(get_args(Fit))}")
        _require_numbers(self, "layer_norm_eps", at_least=0.0)
        _require_divisible("vision heads", self.heads, "vision width", self.width)
        _require_divisible("patch_size_px", self.patch_size_px, "image_size_px", self.image_size_px)
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
        """Layers that have to run: what follows the selected hidden state is never computed."""
        return self.layers + 1 + self.select_layer if self.select_layer < 0 else self.select_layer

    def grid(self, image_wh: tuple[int, int]) -> ImageGrid:
        """The cells of the image grid over a picture of this size."""
        return PaddedGrid(image_wh, self.image_size_px, self.grid_side, self.fit)

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """RGB, 0..255, of the border that makes an image square: the mean, truncated (as LLaVA does)."""
        if self.border is not None:
            return self.border
        red, green, blue = (int(255 * mean) for mean in self.image_mean)
        return red, green, blue


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    `linear` divides them; `llama3` and `yarn` divide those of long waves, relative to `original_context`, and `yarn`
    scales cosines and sines by `amplitude` as well. `dynamic` leaves them as they are up to `original_context`; beyond
    it they would depend on the length of each request, so that no model here has more context than that.
    """

    kind: Literal["linear", "llama3", "dynamic", "yarn"]
    factor: float
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens
    beta_fast: float = 32.0  # yarn: turns within the original context above which a wave stays
    beta_slow: float = 1.0  # and below which it is divided
    amplitude: float = 1.0
    truncate: bool = True  # whether these bounds are rounded to whole channels

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "amplitude"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise BadInput(f"{name} of the rope scaling {self.kind} is {value!r}; expected a number above 0")
        _require_positive(self, "original_context")


@dataclass(frozen=True)
class LlmSpec:
    """A LLaMA-style decoder."""

    vocabulary: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # H
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_context: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    sliding_window: int | None = None  # most tokens that one sees, itself among them; None: all before it

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocabulary", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "max_context"
        )
        _require_numbers(self, "rope_theta", at_least=1e-6)
        _require_numbers(self, "rms_norm_eps", at_least=0.0)
        if self.sliding_window is not None:
            _require_positive(self, "sliding_window")
        if self.rope_scaling is not None and self.rope_scaling.kind == "dynamic":
            self._require_original_context(self.rope_scaling)
        _require_divisible("kv_heads", self.kv_heads, "heads", self.heads)
        if self.head_dim % 2:
            raise BadInput(f"head_dim is {self.head_dim}; rotary embeddings need an even one")

    def _require_original_context(self, scaling: RopeScaling) -> None:
        if self.max_context > scaling.original_context:
            raise BadInput(
                f"a context of {self.max_context} is beyond the {scaling.original_context} up to which dynamic rope "
                f"scaling has fixed frequencies; expected {scaling.original_context} at most"
            )

    def window_within(self, context: int) -> int | None:
        """The sliding window, where it hides anything from one of `context` tokens."""
        return self.sliding_window if self.sliding_window is not None and self.sliding_window < context else None


@dataclass(frozen=True)
class RpnSpec:
    """The region proposal network: T layers, of which the last has only its query and key projections."""

    layers: int  # T
    multi_head: bool = True  # False: one dot product over the whole width, not scaled
    loss: RoiLoss = "bce"  # "mse": scores are a distribution, softmax per head before the mean

    def __post_init__(self) -> None:
        _require_positive(self, "layers")


@dataclass(frozen=True)
class PromptSpec:
    """How a question becomes tokens.

    `template` is a name among `sdrpn.text.conversations`, or a Jinja chat template as Hugging Face stores it.
    `image_token` is the text that stands for the image in a prompt.
    `special_tokens` are texts that a chat template knows as `bos_token` and so on, where the tokenizer has names for
    them; for other names it gets the texts of the ids.
    """

    template: str = "vicuna_v1"
    image_token: str = "<image>"
    image_token_id: int | None = None  # None: not in the vocabulary
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.image_token:
            raise BadInput("image_token is empty; expected the text that stands for the image")
        for name in ("image_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < _MOST_TOKEN_ID:
                raise BadInput(f"{name} is {value}; expected none, or 0 to {_MOST_TOKEN_ID - 1}")
        if not all(0 <= value < _MOST_TOKEN_ID for value in self.eos_token_ids):
            raise BadInput(f"eos_token_ids are {list(self.eos_token_ids)}; expected 0 to {_MOST_TOKEN_ID - 1} each")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that the graphs and the runtime need to know about a checkpoint, without its weights."""

    vision: VisionSpec
    llm: LlmSpec
    tap_layer: int  # K: the trunk is layers 0..K-1, the tail K..L-1
    rpn: RpnSpec | None = field(default=None, metadata=REQUIRED)  # None: a plain LLaVA
    prompt: PromptSpec = field(default_factory=PromptSpec, metadata=REQUIRED)

    def __post_init__(self) -> None:
        if not 1 <= self.tap_layer < self.llm.layers:
            raise BadInput(f"the tap lies after layer {self.tap_layer}; expected 1 to {self.llm.layers - 1}")
        if self.rpn is not None and self.tap_layer + self.rpn.layers > self.llm.layers:
            raise BadInput(
                f"an RPN of {self.rpn.layers} layers after layer {self.tap_layer} needs "
                f"{self.tap_layer + self.rpn.layers} LLM layers to start from; the LLM has {self.llm.layers}"
            )
        if self.rpn is not None and not self.rpn.multi_head and self.llm.kv_heads != self.llm.heads:
            raise BadInput(
                f"roi_multi_head=false multiplies whole queries and keys and needs as many key heads as query heads; "
                f"got {self.llm.kv_heads} and {self.llm.heads}"
            )

    @property
    def projector_widths(self) -> tuple[int, ...]:
        """What goes into the projector's first matrix, and what comes out of each."""
        hidden = self.vision.projector_width or self.llm.width
        return (self.vision.width, *[hidden] * (self.vision.projector_layers - 1), self.llm.width)

    @property
    def tail_layers(self) -> int:
        """L - K."""
        return self.llm.layers - self.tap_layer

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, for a manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`; raises BadInput for a missing or unknown entry."""
        try:
            return read_dataclass(cls, value)
        except BadInput as error:
            raise BadInput(f"a model description cannot be read ({error}); export the checkpoint again") from error


def _require_positive(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"{name} is {repr(value)[:40]}; expected a whole number of at least 1")
        if value > _MOST[name]:
            raise BadInput(f"{name} is {str(value)[:40]}; expected {_MOST[name]} at most")


def _require_numbers(spec: object, *names: str, at_least: float) -> None:
    for name in names:
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not at_least <= value < math.inf:
            raise BadInput(f"{name} is {str(value)[:40]}; expected a number of at least {at_least:g}")


def _require_rgb(name: str, values: object, expected: str, is_good: Callable[[float], bool]) -> None:
    channels = values if isinstance(values, tuple) else ()
    if len(channels) != 3 or not all(type(value) in (int, float) and is_good(value) for value in channels):
        raise BadInput(f"{name} is {str(values)[:80]}; expected {expected}")


def _require_divisible(part_name: str, part: int, whole_name: str, whole: int) -> None:
    if whole % part:
        raise BadInput(f"{whole_name} ({whole}) is not a multiple of {part_name} ({part})")
