"""The canonical names of LLaVA's tensors between pixels and the LLM, and their shapes. A table; reads no file."""

from __future__ import annotations

from itertools import pairwise

from sdrpn.families.family import Shapes
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.method.spec import LlmSpec, ModelSpec

__all__ = ["projector_shapes", "tower_shapes", "vision_shapes"]


def vision_shapes(spec: ModelSpec) -> Shapes:
    """Tower and projector, in the order of the computation."""
    return tower_shapes(clip_of(spec)) | projector_shapes(clip_of(spec), spec.llm)


def tower_shapes(vision: VisionSpec) -> Shapes:
    """CLIP up to the hidden state that is selected; later layers and the post-layernorm are not needed."""
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


def projector_shapes(vision: VisionSpec, llm: LlmSpec) -> Shapes:
    """Linear layers with a GELU between each two."""
    shapes: Shapes = {}
    for number, (inputs, outputs) in enumerate(pairwise(vision.projector_widths(llm)), start=1):
        shapes |= _affine(f"projector.fc{number}", outputs, inputs)
    return shapes


def _affine(name: str, outputs: int, inputs: int | None = None) -> Shapes:
    weight = (outputs,) if inputs is None else (outputs, inputs)
    return {f"{name}.weight": weight, f"{name}.bias": (outputs,)}
