"""The canonical names of a model's tensors and their shapes. A table; reads no file.

Everything that reads a checkpoint (the PyTorch model, the export) uses only these names. Matrices are stored (out, in),
as in PyTorch's Linear.
"""

from __future__ import annotations

from sdrpn.families.registry import family_of
from sdrpn.method.gate import MAP_STATISTICS
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec

__all__ = [
    "RPN_LAST_LAYER",
    "Shapes",
    "decoder_layer_shapes",
    "gate_shapes",
    "llm_shapes",
    "proposal_shapes",
    "rpn_shapes",
    "tensor_shapes",
]

Shapes = dict[str, tuple[int, ...]]

# The last RPN layer scores the image tokens by its query and key; nothing else of it is used.
RPN_LAST_LAYER = ("input_norm.weight", "attention.q.weight", "attention.k.weight")
# Where a model has them as well.
_RPN_LAST_LAYER_EXTRAS = ("attention.q.bias", "attention.k.bias", "attention.q_norm.weight", "attention.k_norm.weight")


def tensor_shapes(spec: ModelSpec) -> Shapes:
    """Every tensor that `spec` needs, in the order of the computation."""
    shapes = family_of(spec).vision_shapes(spec) | llm_shapes(spec.llm)
    return shapes if spec.rpn is None else shapes | proposal_shapes(spec.llm, spec.rpn)


def proposal_shapes(llm: LlmSpec, rpn: RpnSpec) -> Shapes:
    """The RPN, and the gate where there is one."""
    own = rpn_shapes(llm, rpn.layers, outer_norm=rpn.outer_norm)
    return {f"rpn.{name}": shape for name, shape in own.items()} | gate_shapes(llm, rpn)


def llm_shapes(llm: LlmSpec) -> Shapes:
    """Embedding table, L decoder layers, final norm and head (which, when tied, is the embedding table)."""
    shapes: Shapes = {"llm.embed.weight": (llm.vocabulary, llm.width)}
    for layer in range(llm.layers):
        shapes |= {f"llm.layers.{layer}.{suffix}": shape for suffix, shape in decoder_layer_shapes(llm).items()}
    return shapes | {"llm.norm.weight": (llm.width,), "llm.head.weight": (llm.vocabulary, llm.width)}


def rpn_shapes(llm: LlmSpec, layers: int, *, outer_norm: bool = True) -> Shapes:
    """An RPN of `layers` layers, without the prefix `rpn.`; `outer_norm`: see `RpnSpec`."""
    layer_shapes, last = decoder_layer_shapes(llm), {*RPN_LAST_LAYER, *_RPN_LAST_LAYER_EXTRAS}
    shapes: Shapes = {}
    for layer in range(layers):
        for suffix, shape in layer_shapes.items():
            if layer < layers - 1 or suffix in last:
                shapes[f"layers.{layer}.{suffix}"] = shape
    return shapes | ({"norm.weight": (llm.width,)} if outer_norm else {})


def gate_shapes(llm: LlmSpec, rpn: RpnSpec) -> Shapes:
    """The gate's whole decoder layers and its one score, or its probe; nothing if there is no gate."""
    shapes: Shapes = {}
    for layer in range(rpn.gate_layers):
        shapes |= {f"gate.layers.{layer}.{suffix}": shape for suffix, shape in decoder_layer_shapes(llm).items()}
    if not rpn.has_gate:
        return {}
    width = llm.width + (len(MAP_STATISTICS) if rpn.gate_probe else 0)
    return shapes | {"gate.head.weight": (1, width), "gate.head.bias": (1,)}


def decoder_layer_shapes(llm: LlmSpec) -> Shapes:
    """One layer of the LLM, without a prefix."""
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    biases = {"attention.q.bias": (queries,), "attention.k.bias": (keys,), "attention.v.bias": (keys,)}
    norms = {f"attention.{part}_norm.weight": (llm.head_dim,) for part in ("q", "k")}
    return {
        "input_norm.weight": (llm.width,),
        "attention.q.weight": (queries, llm.width),
        "attention.k.weight": (keys, llm.width),
        "attention.v.weight": (keys, llm.width),
        "attention.o.weight": (llm.width, queries),
        **(biases if llm.attention_bias else {}),
        **(norms if llm.qk_norm else {}),
        "post_norm.weight": (llm.width,),
        "mlp.gate.weight": (llm.mlp_width, llm.width),
        "mlp.up.weight": (llm.mlp_width, llm.width),
        "mlp.down.weight": (llm.width, llm.mlp_width),
    }
