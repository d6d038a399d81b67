"""The description of a model: sizes, special tokens, and where its layers are cut. Knows no tensors.

Letters used in shapes everywhere: B batch, S sequence, D width, H heads, V vocabulary, G grid side of
the image (cells), R image side (pixels), K layers below the tap, T layers of the RPN, L layers of the LLM.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from sdrpn.errors import BadInput
from sdrpn.host.json_reader import REQUIRED
from sdrpn.method.grids import ImageGrid

__all__ = [
    "AskedScheme",
    "LlmSpec",
    "ModelSpec",
    "PromptSpec",
    "RoiLoss",
    "RopeScaling",
    "RpnSpec",
    "Scheme",
    "Vision",
    "require_divisible",
    "require_numbers",
    "require_positive",
]

# Several times the sizes of the largest models: beyond them, even listing the tensors of a model would take long, and
# tables by position would need more memory than anything else.
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
Scheme = Literal["sd-rpn", "q-zoom"]
AskedScheme = Literal["auto", "sd-rpn", "q-zoom"]  # "auto": as a checkpoint says

_MOST_TOKEN_ID = 2**31


class Vision(Protocol):
    """How a model sees a picture: the protocol of the vision part of a spec, a frozen dataclass of the family."""

    family: ClassVar[str]  # its name, see `sdrpn.families`

    @property
    def image_tokens(self) -> int:
        """The most tokens for a picture, or for a crop of it."""

    def grid(self, image_wh: tuple[int, int]) -> ImageGrid:
        """The cells of the image grid over a picture of this size."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled.

    `linear` divides all; `llama3` and `yarn` divide low frequencies, relative to `original_context`, and `yarn` also
    scales cosines and sines by `amplitude`. `dynamic` changes nothing up to `original_context`; beyond it, frequencies
    would depend on the length of each request, so contexts are limited to it.
    """

    kind: Literal["linear", "llama3", "dynamic", "yarn"]
    factor: float
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    original_context: int = 8192  # tokens
    beta_fast: float = 32.0  # yarn: with more turns within the original context a frequency is kept
    beta_slow: float = 1.0  # with fewer it is divided
    amplitude: float = 1.0
    truncate: bool = True  # whether these bounds are rounded to whole channels

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "amplitude"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise BadInput(f"{name} of the rope scaling {self.kind} is {value!r}; expected a number above 0")
        require_positive(self, "original_context")


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
    sliding_window: int | None = None  # most tokens that a token attends to, itself included; None: all before it
    attention_bias: bool = False  # of the projections of queries, keys and values
    qk_norm: bool = False  # an RMS norm over the channels of every query and key head, before they are turned
    rope_sections: tuple[int, ...] = ()  # pairs of channels for each axis of positions; (): there is one axis

    def __post_init__(self) -> None:
        require_positive(
            self, "vocabulary", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "max_context"
        )
        require_numbers(self, "rope_theta", at_least=1e-6)
        require_numbers(self, "rms_norm_eps", at_least=0.0)
        if self.sliding_window is not None:
            require_positive(self, "sliding_window")
        if self.rope_scaling is not None and self.rope_scaling.kind == "dynamic":
            self._require_original_context(self.rope_scaling)
        require_divisible("kv_heads", self.kv_heads, "heads", self.heads)
        if self.head_dim % 2:
            raise BadInput(f"head_dim is {self.head_dim}; rotary embeddings need an even one")
        if self.rope_sections and (min(self.rope_sections) < 0 or sum(self.rope_sections) != self.head_dim // 2):
            raise BadInput(
                f"rope_sections are {list(self.rope_sections)}; expected {self.head_dim // 2} pairs in all, "
                "half of head_dim"
            )

    def _require_original_context(self, scaling: RopeScaling) -> None:
        if self.max_context > scaling.original_context:
            raise BadInput(
                f"a context of {self.max_context} is beyond the {scaling.original_context} up to which dynamic rope "
                f"scaling has fixed frequencies; expected {scaling.original_context} at most"
            )

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest matrix in a layer."""
        return self.width * max(self.mlp_width, (self.heads + 2 * self.kv_heads) * self.head_dim)

    def window_within(self, context: int) -> int | None:
        """The sliding window, if it is shorter than `context` tokens."""
        return self.sliding_window if self.sliding_window is not None and self.sliding_window < context else None


@dataclass(frozen=True)
class RpnSpec:
    """The region proposal network: T layers, of which the last has only its query and key projections.

    The defaults are those of SD-RPN.
    """

    layers: int  # T
    multi_head: bool = True  # False: one dot product over the whole width, not scaled
    loss: RoiLoss = "bce"  # "mse": scores are a distribution, softmax per head before the mean
    scheme: Scheme = "sd-rpn"  # whose second pass it is
    rotary: bool = False  # whether the last layer's queries and keys are turned by positions
    outer_norm: bool = True  # a norm of the RPN's own in front of that of its last layer
    sink_query: bool = False  # whether the first token's query says which cells are sinks
    reuse_positions: bool = False  # crops have the positions of the source cells that they show
    gate_layers: int = 0  # of the gate, which says whether to look again; 0: it has none
    # Whether the gate has no layers and is a linear probe: of the tap's last row and of the map's statistics.
    gate_probe: bool = False
    prune_above: int = 0  # an image of more tokens loses those that no later token looks at; 0: none does

    def __post_init__(self) -> None:
        require_positive(self, "layers")
        if type(self.gate_layers) is not int or not 0 <= self.gate_layers <= _MOST["layers"]:
            raise BadInput(f"gate_layers is {str(self.gate_layers)[:40]}; expected 0 to {_MOST['layers']}")
        if self.gate_probe and self.gate_layers:
            raise BadInput(f"gate_layers is {self.gate_layers} and gate_probe true; expected one of the two kinds")
        if type(self.prune_above) is not int or not 0 <= self.prune_above <= _MOST["max_context"]:
            raise BadInput(f"prune_above is {str(self.prune_above)[:40]}; expected 0 to {_MOST['max_context']} tokens")
        if (self.prune_above or self.sink_query) and not self.multi_head:
            raise BadInput("multi_head is false: scores of whole queries say nothing of sinks or of what to keep")

    @property
    def has_gate(self) -> bool:
        """Whether a gate, of either kind, says whether to look again."""
        return self.gate_layers > 0 or self.gate_probe


@dataclass(frozen=True)
class PromptSpec:
    """How a question becomes tokens.

    `template` is a name that the family knows (`Family.prompt_names`), or a Jinja chat template as Hugging Face stores
    it; empty: the family's own prompt.
    `image_token` is the placeholder of the image in a prompt.
    `special_tokens` are the texts of `bos_token` and so on for a chat template, where the tokenizer names them; for the
    others the texts of the ids are used. The default ids are SentencePiece's.
    """

    template: str = ""
    image_token: str = "<image>"
    image_token_id: int | None = None  # None: not in the vocabulary
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int | None = None
    repetition_penalty: float = 1.0  # of generation_config.json; see `sdrpn.runtime.sampling.Sampling`
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.image_token:
            raise BadInput("image_token is empty; expected the text that stands for the image")
        for name in ("image_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < _MOST_TOKEN_ID:
                raise BadInput(f"{name} is {value}; expected none, or 0 to {_MOST_TOKEN_ID - 1}")
        require_numbers(self, "repetition_penalty", at_least=0.01)
        if not all(0 <= value < _MOST_TOKEN_ID for value in self.eos_token_ids):
            raise BadInput(f"eos_token_ids are {list(self.eos_token_ids)}; expected 0 to {_MOST_TOKEN_ID - 1} each")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that the graphs and the runtime need to know about a checkpoint, without its weights."""

    vision: Vision
    llm: LlmSpec
    tap_layer: int  # K: the trunk is layers 0..K-1, the tail K..L-1
    rpn: RpnSpec | None = field(default=None, metadata=REQUIRED)  # None: a plain model, of one look
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
        if self.rpn is not None and self.rpn.prune_above and self.llm.qk_norm:
            raise BadInput("prune_above averages queries of several heads, which qk_norm does not allow")

    @property
    def tail_layers(self) -> int:
        """L - K."""
        return self.llm.layers - self.tap_layer

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, for a manifest; `sdrpn.families.registry.spec_from_json` reads it."""
        return {**dataclasses.asdict(self), "family": self.vision.family}


def require_positive(spec: object, *names: str) -> None:
    """Raise BadInput for a field that is not an integer of at least 1, or is beyond the sizes of any model."""
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"{name} is {repr(value)[:40]}; expected a whole number of at least 1")
        if value > _MOST[name]:
            raise BadInput(f"{name} is {str(value)[:40]}; expected {_MOST[name]} at most")


def require_numbers(spec: object, *names: str, at_least: float) -> None:
    """Raise BadInput for a field that is not a finite number of at least `at_least`."""
    for name in names:
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not at_least <= value < math.inf:
            raise BadInput(f"{name} is {str(value)[:40]}; expected a number of at least {at_least:g}")


def require_divisible(part_name: str, part: int, whole_name: str, whole: int) -> None:
    """Raise BadInput if a part does not divide the whole."""
    if whole % part:
        raise BadInput(f"{whole_name} ({whole}) is not a multiple of {part_name} ({part})")


def __getattr__(name: str) -> object:
    """Names that this module had in the previous release, kept for one version."""
    from sdrpn._moved import name_of

    return name_of(__name__, name)
