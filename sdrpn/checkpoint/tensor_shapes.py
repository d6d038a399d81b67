"""The canonical names of a model's tensors and their shapes. A table; reads no file.

Everything that reads a checkpoint (the PyTorch model, the export) uses only these names. Matrices are stored (out, in),
as in PyTorch's Linear.
"""

from __future__ import annotations

from sdrpn.families.registry import family_of
from sdrpn.method.spec import LlmSpec, ModelSpec

__all__ = ["RPN_LAST_LAYER", "Shapes", "llm_shapes", "rpn_shapes", "tensor_shapes"]

Shapes = dict[str, tuple[int, ...]]

# The last RPN layer scores the image tokens by its query and key; nothing else of it is used.
RPN_LAST_LAYER = ("input_norm.weight", "attention.q.weight", "attention.k.weight")


def tensor_shapes(spec: ModelSpec) -> Shapes:
    """Every tensor that `spec` needs, in the order of the computation."""
    shapes = family_of(spec).vision_shapes(spec) | llm_shapes(spec.llm)
    if spec.rpn is not None:
        shapes |= {f"rpn.{name}": shape for name, shape in rpn_shapes(spec.llm, spec.rpn.layers).items()}
    return shapes


def llm_shapes(llm: LlmSpec) -> Shapes:
    """Embedding table, L decoder layers, final norm and head (which, when tied, is the embedding table)."""
    shapes: Shapes = {"llm.embed.weight": (llm.vocabulary, llm.width)}
    for layer in range(llm.layers):
        shapes |= {f"llm.layers.{layer}.{suffix}": shape for suffix, shape in _decoder_layer(llm).items()}
    return shapes | {"llm.norm.weight": (llm.width,), "llm.head.weight": (llm.vocabulary, llm.width)}


def rpn_shapes(llm: LlmSpec, layers: int) -> Shapes:
    """An RPN of `layers` layers, without the prefix `rpn.`."""
    layer_shapes = _decoder_layer(llm)
    shapes: Shapes = {}
    for layer in range(layers):
        for suffix, shape in layer_shapes.items():
            if layer < layers - 1 or suffix in RPN_LAST_LAYER:
                shapes[f"layers.{layer}.{suffix}"] = shape
    return shapes | {"norm.weight": (llm.width,)}


def _decoder_layer(llm: LlmSpec) -> Shapes:
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    return {
        "input_norm.weight": (llm.width,),
        "attention.q.weight": (queries, llm.width),
        "attention.k.weight": (keys, llm.width),
        "attention.v.weight": (keys, llm.width),
        "attention.o.weight": (llm.width, queries),
        "post_norm.weight": (llm.width,),
        "mlp.gate.weight": (llm.mlp_width, llm.width),
        "mlp.up.weight": (llm.mlp_width, llm.width),
        "mlp.down.weight": (llm.width, llm.mlp_width),
    }
