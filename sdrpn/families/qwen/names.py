"""What checkpoints of each release of transformers call the tensors. Tables; reads no file.

Qwen2.5-VL is saved as `visual.*`, `model.layers.*`; its modules have been called `model.visual.*` and
`model.language_model.layers.*` since 4.52, as Qwen3-VL is saved. The RPN ("twig") and the gate ("high_res") of the
official code lie beside the LLM's layers.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from sdrpn.errors import BadCheckpoint

__all__ = ["NameTable", "detect_names", "has_gate", "has_rpn", "is_sd_rpn"]

# Longer prefixes first: each holds for all names of the layout.
_LLM_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
_VISION_PREFIXES = ("model.visual.", "visual.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")
_RPN_LAYERS, _GATE_LAYERS, _GATE_HEAD = "twig_layers.", "high_res_layers.", "high_res_head."
# SD-RPN's classes have these, and never use them; Q-Zoom's do not.
_SD_RPN_ONLY = ("twig_norm.weight", "twig_head.weight")

_DECODER = {
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp.fc1": "mlp.linear_fc1",
    "mlp.fc2": "mlp.linear_fc2",
}
_MERGER_25 = {"norm": "ln_q", "fc1": "mlp.0", "fc2": "mlp.2"}
_MERGER_3 = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}


@dataclass(frozen=True)
class NameTable:
    """The names of one checkpoint."""

    llm: str
    vision: str
    head: str
    family: str

    @property
    def layout(self) -> str:
        """Its name, for messages."""
        return f"{self.family} ({self.llm}*)"

    def file_name(self, name: str) -> str:
        """The checkpoint's name for a canonical tensor. Raises KeyError for a name that is none."""
        part, _, rest = name.partition(".")
        if part == "vision":
            return self.vision + self._vision_name(rest)
        if name == "llm.head.weight":
            return self.head
        if part == "llm":
            other = {"embed.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}
            return self.llm + (other.get(rest) or _layered(rest, "layers.", _DECODER))
        if part == "rpn":
            return self.llm + _layered(rest, _RPN_LAYERS, _DECODER)
        if part == "gate" and rest.startswith("head."):
            return self.llm + _GATE_HEAD + rest.removeprefix("head.")
        if part == "gate":
            return self.llm + _layered(rest, _GATE_LAYERS, _DECODER)
        raise KeyError(name)

    def _vision_name(self, rest: str) -> str:
        part, _, suffix = rest.partition(".")
        merger = _MERGER_25 if self.family == "qwen2.5-vl" else _MERGER_3
        if part == "patch":
            return f"patch_embed.proj.{suffix}"
        if part == "positions":
            return "pos_embed.weight"
        if part == "merger":
            return f"merger.{_renamed(suffix, merger)}"
        if part == "deepstack":
            number, _, inner = suffix.partition(".")
            return f"deepstack_merger_list.{number}.{_renamed(inner, merger)}"
        return _layered(rest, "blocks.", _BLOCK)


def detect_names(names: Set[str], *, family: str, where: str) -> NameTable:
    """The layout whose layers are among `names`. Raises BadCheckpoint where there is none."""
    llm = _first(_LLM_PREFIXES, "layers.0.", names)
    vision = _first(_VISION_PREFIXES, "blocks.0.", names)
    found = min(names, default="none")
    if llm is None:
        known = ", ".join(f"{prefix}layers.N.*" for prefix in _LLM_PREFIXES)
        raise BadCheckpoint(
            f"{where} has no decoder layers of {family}: expected tensors named {known}; found {len(names)} others, "
            f"such as {found}"
        )
    if vision is None:
        known = " or ".join(f"{prefix}blocks.N.*" for prefix in _VISION_PREFIXES)
        raise BadCheckpoint(
            f"{where} has no vision tower of {family}: expected tensors named {known}; it may be the language model "
            "alone: download the whole checkpoint"
        )
    head = next((name for name in _HEADS if name in names), _HEADS[0])
    return NameTable(llm, vision, head, family)


def has_rpn(names: Set[str]) -> bool:
    """Whether any tensor is of an RPN."""
    return any(f".{_RPN_LAYERS}" in f".{name}" for name in names)


def has_gate(names: Set[str]) -> bool:
    """Whether any tensor is of a gate."""
    return any(f".{part}" in f".{name}" for name in names for part in (_GATE_LAYERS, _GATE_HEAD))


def is_sd_rpn(names: Set[str]) -> bool:
    """Whether SD-RPN's own classes saved these."""
    return any(name.endswith(_SD_RPN_ONLY) for name in names)


def _first(prefixes: tuple[str, ...], part: str, names: Set[str]) -> str | None:
    return next((prefix for prefix in prefixes if any(name.startswith(prefix + part) for name in names)), None)


def _layered(rest: str, layers: str, table: dict[str, str]) -> str:
    _, index, suffix = rest.split(".", 2)
    return f"{layers}{index}.{_renamed(suffix, table)}"


def _renamed(name: str, table: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    return f"{table[module]}.{kind}"
