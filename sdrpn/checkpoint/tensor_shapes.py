"""The canonical names of a model's tensors and their shapes. A table; reads no file.

Everything that reads a checkpoint (the PyTorch model, the export) uses only these names. Matrices are stored (out, in),
as in PyTorch's Linear.
"""

from __future__ import annotations

from itertools import pairwise

from sdrpn.method.spec import LlmSpec, ModelSpec, VisionSpec

__all__ = ["RPN_LAST_LAYER", "Shapes", "llm_shapes", "projector_shapes", "rpn_shapes", "tensor_shapes", "vision_shapes"]

Shapes = dict[str, tuple[int, ...]]

# The last RPN layer scores the image tokens by its query and key; nothing else of it is used.
RPN_LAST_LAYER = ("input_norm.weight", "attention.q.weight", "attention.k.weight")


def tensor_shapes(spec: ModelSpec) -> Shapes:
    """Every tensor that `spec` needs, in the order of computation."""
    shapes = vision_shapes(spec.vision) | projector_shapes(spec) | llm_shapes(spec.llm)
    if spec.rpn is not None:
        shapes |= {f"rpn.{name}": shape for name, shape in rpn_shapes(spec.llm, spec.rpn.layers).items()}
    return shapes


def vision_shapes(vision: VisionSpec) -> Shapes:
    """CLIP up to the selected hidden state; later layers and the post-layernorm are not needed."""
    width, patch = vision.width, vision.patch_size_px
    shapes: Shapes = {
        "vision.class_embedding": (width,),
        "vision.patch_embedding.weight": (width, 3, patch, patch),
        "vision.position_embedding": (vision.image_tokens + 1, width),
    }
    shapes |= _affine("vision.pre_norm", width)
    for layer in range(vision.used_layers):
        prefix = f"vision.layers.{layer}"
        shapes |= _affine(f"{prefix}.norm1", width)
        for projection in ("q", "k", "v", "out"):
            shapes |= _affine(f"{prefix}.attention.{projection}", width, width)
        shapes |= _affine(f"{prefix}.norm2", width)
        shapes |= _affine(f"{prefix}.mlp.fc1", vision.mlp_width, width)
        shapes |= _affine(f"{prefix}.mlp.fc2", width, vision.mlp_width)
    return shapes


def projector_shapes(spec: ModelSpec) -> Shapes:
    """The projector: linear layers with a GELU between them."""
    shapes: Shapes = {}
    for number, (inputs, outputs) in enumerate(pairwise(spec.projector_widths), start=1):
        shapes |= _affine(f"projector.fc{number}", outputs, inputs)
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


def _affine(name: str, outputs: int, inputs: int | None = None) -> Shapes:
    weight = (outputs,) if inputs is None else (outputs, inputs)
    return {f"{name}.weight": weight, f"{name}.bias": (outputs,)}
