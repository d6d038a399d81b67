"""The canonical names of the tensors of the vision towers, and their shapes. A table; reads no file."""

from __future__ import annotations

from sdrpn.families.family import Shapes
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, QwenVision, qwen_vision_of
from sdrpn.method.spec import LlmSpec, ModelSpec

__all__ = ["vision_shapes"]

_CHANNELS = 3


def vision_shapes(spec: ModelSpec) -> Shapes:
    """Tower and mergers, up to the LLM's width."""
    vision = qwen_vision_of(spec)
    return _tower_25(vision, spec.llm) if isinstance(vision, Qwen25Vision) else _tower_3(vision, spec.llm)


def _tower_25(vision: Qwen25Vision, llm: LlmSpec) -> Shapes:
    width = vision.width
    shapes: Shapes = {"vision.patch.weight": _patch_kernel(vision)}
    for layer in range(vision.layers):
        prefix = f"vision.layers.{layer}"
        shapes |= {f"{prefix}.norm1.weight": (width,), f"{prefix}.norm2.weight": (width,)}
        shapes |= _attention(prefix, width)
        for part in ("gate", "up"):
            shapes |= _affine(f"{prefix}.mlp.{part}", vision.mlp_width, width)
        shapes |= _affine(f"{prefix}.mlp.down", width, vision.mlp_width)
    return shapes | {"vision.merger.norm.weight": (width,)} | _merger("vision.merger", vision, llm)


def _tower_3(vision: Qwen3Vision, llm: LlmSpec) -> Shapes:
    width = vision.width
    shapes: Shapes = {
        "vision.patch.weight": _patch_kernel(vision),
        "vision.patch.bias": (width,),
        "vision.positions": (vision.position_side**2, width),
    }
    for layer in range(vision.layers):
        prefix = f"vision.layers.{layer}"
        shapes |= _norm(f"{prefix}.norm1", width) | _norm(f"{prefix}.norm2", width) | _attention(prefix, width)
        shapes |= _affine(f"{prefix}.mlp.fc1", vision.mlp_width, width)
        shapes |= _affine(f"{prefix}.mlp.fc2", width, vision.mlp_width)
    # The last merger norms every patch, those of DeepStack the patches of a token side by side.
    shapes |= _norm("vision.merger.norm", width) | _merger("vision.merger", vision, llm)
    for number in range(len(vision.deepstack_layers)):
        prefix = f"vision.deepstack.{number}"
        shapes |= _norm(f"{prefix}.norm", vision.merged_width) | _merger(prefix, vision, llm)
    return shapes


def _patch_kernel(vision: QwenVision) -> tuple[int, ...]:
    """The kernel as stored; for still pictures it can be summed over the frames."""
    return (vision.width, _CHANNELS, vision.frames, vision.patch_size_px, vision.patch_size_px)


def _attention(prefix: str, width: int) -> Shapes:
    return _affine(f"{prefix}.attention.qkv", 3 * width, width) | _affine(f"{prefix}.attention.out", width, width)


def _merger(prefix: str, vision: QwenVision, llm: LlmSpec) -> Shapes:
    merged = vision.merged_width
    return _affine(f"{prefix}.fc1", merged, merged) | _affine(f"{prefix}.fc2", llm.width, merged)


def _affine(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
