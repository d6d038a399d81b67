"""The lower bounds of roofline.py for models that see pictures of any shape, with a gate before the second look."""

from __future__ import annotations

from collections.abc import Iterator

from roofline import BYTES, DEVICES, Work, head, layers, number, paragraph, rpn, tail_layers

from sdrpn.families.qwen.vision_spec import Qwen25Vision, qwen_vision_of
from sdrpn.families.registry import family_of, published_shapes
from sdrpn.method.spec import ModelSpec
from sdrpn.method.usual_length import TOKENS_AFTER_IMAGE

__all__ = ["any_shape"]

TARGETS = ("jetson-orin-nx-jp62", "jetson-agx-orin-jp72", "jetson-thor", "rtx-4090")
IMAGE = CROP = 576  # tokens: the most of the official evaluations


def any_shape() -> Iterator[str]:
    """Every published model with a gate, in int4."""
    yield "## Pictures of any shape, int4, milliseconds\n"
    yield paragraph(
        f"A picture and a crop of {IMAGE} tokens each. The vision tower, the RPN and the gate stay in fp16. *Gate "
        "skips*: the first token where the gate is asked and says that the first look is enough; *with a crop*: gate, "
        "RPN, and the second pass. Windows of the tower are counted as windows."
    )
    yield "| model | target | vision | trunk | gate | RPN | tail | plain | gate skips | with a crop | a token |"
    yield "|---" * 11 + "|"
    for name, spec in published_shapes().items():
        if spec.rpn is None or not spec.rpn.gate_layers:
            continue
        for target in TARGETS:
            yield f"| {name} | {target} | {' | '.join(number(1e3 * each) for each in seconds(spec, target))} |"
    yield ""


def seconds(spec: ModelSpec, target: str) -> tuple[float, ...]:
    """The columns of the table."""
    device, size = DEVICES[target], BYTES["int4"]
    family = family_of(spec)
    before = family.usual_prompt_tokens - TOKENS_AFTER_IMAGE
    prefix, rest = before + IMAGE, CROP + TOKENS_AFTER_IMAGE
    prompt, context = prefix + TOKENS_AFTER_IMAGE, prefix + rest

    def bound(*works: Work, bytes_a_weight: float = size) -> float:
        return sum(work.seconds(device, bytes_a_weight) for work in works)

    assert spec.rpn is not None
    one = bound(tower(spec), bytes_a_weight=2.0)
    trunk = bound(layers(spec, spec.tap_layer, prompt, prompt))
    gate = bound(layers(spec, spec.rpn.gate_layers, prompt, prompt), bytes_a_weight=2.0)
    look = bound(rpn(spec, prompt, prompt), bytes_a_weight=2.0)
    tail = bound(tail_layers(spec, prompt, prompt) + head(spec))
    second = bound(
        tail_layers(spec, prefix, prefix),
        layers(spec, spec.tap_layer, rest, context),
        tail_layers(spec, rest, context) + head(spec),
    )
    step = bound(layers(spec, spec.llm.layers, 1, context) + head(spec))
    plain = one + trunk + tail
    return one, trunk, gate, look, tail, plain, plain + gate, one + trunk + gate + look + one + second, step


def tower(spec: ModelSpec) -> Work:
    """One look: patches, windows or all of them, and mergers."""
    vision = qwen_vision_of(spec)
    rows, width = IMAGE * vision.merge**2, vision.width
    windowed = isinstance(vision, Qwen25Vision)
    mlp = (3 if windowed else 2) * width * vision.mlp_width
    weights = vision.layers * (4.0 * width * width + mlp)
    full = len(vision.full_layers) if isinstance(vision, Qwen25Vision) else vision.layers
    window = vision.window_patches if isinstance(vision, Qwen25Vision) else 0
    attended = full * rows + (vision.layers - full) * window
    mergers = 1 + family_of(spec).deepstack(vision)
    merger = mergers * (vision.merged_width**2 + vision.merged_width * spec.llm.width)
    patches = vision.patch_numbers * width
    flops = 2.0 * rows * (weights + patches) + 4.0 * rows * attended * width + 2.0 * IMAGE * merger
    return Work(flops, 2.0 * (weights + patches + merger))
