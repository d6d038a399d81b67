"""Names of the tensors in each checkpoint layout. Tables; a new layout is a new row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass

from sdrpn.errors import BadCheckpoint

__all__ = [
    "HF_CURRENT",
    "HF_OLD",
    "LLAVA",
    "SDRPN",
    "Layout",
    "NameTable",
    "clip_name",
    "detect_layout",
    "detect_vision_prefix",
]


@dataclass(frozen=True)
class Layout:
    """The names of a model's parts in one layout.

    `vision`: prefixes that occur in this layout, the usual one first; `rpn` is None where the layout has none.
    `projector`: with the layer's number (from 1) or its index among layers and activations (from 0).
    """

    name: str
    llm: str
    head: str
    projector: str
    vision: tuple[str, ...]
    rpn: str | None = None
    linear_projector: str | None = None  # the name of a projector's only layer

    def file_name(self, name: str, vision_prefix: str | None = None) -> str:
        """The layout's name for a canonical tensor.

        Raises ValueError for a name that the layout cannot express.
        """
        part, _, rest = name.partition(".")
        if part == "vision":
            return (self.vision[0] if vision_prefix is None else vision_prefix) + clip_name(rest)
        if part == "projector":
            fc, _, suffix = rest.partition(".")
            number = int(fc.removeprefix("fc"))
            linear = self.linear_projector if number == 1 else None
            return f"{linear or self.projector.format(number=number, place=2 * number - 2)}.{suffix}"
        if name == "llm.head.weight":
            return self.head
        if part == "llm":
            return self.llm + _decoder_name(rest)
        if part == "rpn" and self.rpn is not None:
            return self.rpn + _decoder_name(rest)
        raise ValueError(f"{name} has no place in the layout {self.name}")

    def with_linear_projector(self) -> Layout:
        """The layout with LLaVA's name for a projector that is one matrix."""
        return dataclasses.replace(self, linear_projector=_LINEAR_PROJECTOR)


_LLAVA_PROJECTOR = "model.mm_projector.{place}"
_LINEAR_PROJECTOR = "model.mm_projector"  # where it is one matrix instead of a list of layers
# The last of these prefixes is that of a tower in its own folder.
_LLAVA_VISION = ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower.", "vision_model.")

# liuhaotian/llava-v1.5-*
LLAVA = Layout("llava", "model.", "lm_head.weight", _LLAVA_PROJECTOR, _LLAVA_VISION)
# The official SD-RPN code adds "twig" layers to it; twig_head.weight exists but is never used.
SDRPN = Layout("sdrpn", "model.", "lm_head.weight", _LLAVA_PROJECTOR, _LLAVA_VISION, rpn="model.twig_")
# llava-hf/llava-1.5-*-hf on the hub. transformers 5 still saves these names, but without "vision_model".
HF_OLD = Layout(
    "hf",
    "language_model.model.",
    "language_model.lm_head.weight",
    "multi_modal_projector.linear_{number}",
    ("vision_tower.vision_model.", "vision_tower."),
)
# The names of transformers' modules since 4.52, as in a state dict saved by hand.
HF_CURRENT = Layout(
    "hf-current",
    "model.language_model.",
    "lm_head.weight",
    "model.multi_modal_projector.linear_{number}",
    ("model.vision_tower.vision_model.", "model.vision_tower."),
)
_KNOWN = (HF_OLD, HF_CURRENT, LLAVA)
_EVERY = (*_KNOWN, SDRPN)
_NEVER_READ = (".rotary_emb.inv_freq", "twig_head.weight", ".position_ids")

_DECODER = {
    "embed.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "input_norm.weight": "input_layernorm.weight",
    "post_norm.weight": "post_attention_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_CLIP = {
    "class_embedding": "embeddings.class_embedding",
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",  # sic
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _decoder_name(name: str) -> str:
    return _layered(name, "layers", lambda suffix: _DECODER[suffix])


def clip_name(name: str) -> str:
    """The name in transformers, below `vision_model.`, for a canonical name below `vision.`."""
    return _layered(name, "encoder.layers", _clip_suffix)


def _clip_suffix(suffix: str) -> str:
    if suffix in _CLIP:
        return _CLIP[suffix]
    module, _, kind = suffix.rpartition(".")
    return f"{_CLIP[module]}.{kind}"


def _layered(name: str, layers: str, translate: Callable[[str], str]) -> str:
    if not name.startswith("layers."):
        return translate(name)
    _, index, suffix = name.split(".", 2)
    return f"{layers}.{index}.{translate(suffix)}"


def detect_layout(names: Set[str], *, with_rpn: bool, where: str) -> Layout:
    """The layout whose decoder layers are among `names`; SDRPN is LLAVA with an RPN, which the config declares.

    Raises BadCheckpoint when there is none.
    """
    for layout in _KNOWN:
        if any(name.startswith(f"{layout.llm}layers.") for name in names):
            found = SDRPN if layout is LLAVA and with_rpn else layout
            return found.with_linear_projector() if f"{_LINEAR_PROJECTOR}.weight" in names else found
    known = ", ".join(f"{layout.llm}layers.N.*" for layout in _KNOWN)
    raise BadCheckpoint(
        f"{where} has no known layout of LLaVA: expected tensors named {known}; "
        f"found {len(names)} others, such as {min(names, default='none')}"
    )


def detect_vision_prefix(names: Set[str], prefixes: Sequence[str]) -> str | None:
    """The first prefix under which `names` has the layers of a vision tower, or None."""
    return next((p for p in prefixes if any(name.startswith(f"{p}encoder.layers.") for name in names)), None)


class NameTable:
    """Translate the names of a model's tensors in any layout to their canonical names.

    For files that have some of the tensors and do not state a layout: adapters, separate projectors.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names`: the canonical names."""
        layouts = [*_EVERY, *([] if "projector.fc2.weight" in names else [LLAVA.with_linear_projector()])]
        self._vision = tuple({prefix for layout in _EVERY for prefix in layout.vision if "." in prefix[:-1]})
        self._canonical = {
            file_name: name for name in names for layout in layouts for file_name in _file_names(layout, name)
        }

    def canonical(self, file_name: str, *, where: str) -> str | None:
        """The canonical name; None for a part of the model that is never computed, such as the tower's last layers.

        Wrappers prefix names with `base_model.` and `model.`, once or twice, or remove one of them. Raises
        BadCheckpoint for an unknown name.
        """
        bare = file_name.removeprefix("base_model.").removeprefix("model.")
        candidates = (bare, f"model.{bare}", bare.removeprefix("model."), file_name)
        for candidate in candidates:
            if candidate in self._canonical:
                return self._canonical[candidate]
        if any(name.startswith(self._vision) or name.endswith(_NEVER_READ) for name in candidates):
            return None
        raise BadCheckpoint(
            f"{file_name} of {where} has no place in this model; expected tensors of its decoder, projector or vision "
            f"tower: is it for another base?"
        )


def _file_names(layout: Layout, name: str) -> list[str]:
    part = name.split(".")[0]
    if part == "vision":
        return [layout.file_name(name, prefix) for prefix in layout.vision]
    if part == "rpn" and layout.rpn is None:
        return []
    return [layout.file_name(name)]
