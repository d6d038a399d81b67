"""How far a bundle may differ from its checkpoint, per precision, and why. Limits only; knows no arrays.

The reference feeds each graph, so that the error of one graph neither hides nor excuses that of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdrpn.errors import BadInput

__all__ = [
    "FP16_PEAK",
    "GPU_JPEG_MEAN_LEVELS",
    "MASKED_SCORE_PEAK",
    "MEASURES",
    "ROTARY_RELATIVE",
    "TOLERANCES",
    "Measure",
    "Tolerances",
    "more_is_better",
    "tolerances_of",
]

# The largest fp16 is 65,504; other pictures may have larger sums and outliers than the trials.
FP16_PEAK = 30_000.0
# The dialect `primitive` subtracts 1e4 from masked scores. They vanish as long as no visible score is that far below
# another one; exp(-20) is 2e-9.
MASKED_SCORE_PEAK = 4_990.0
# Powers of two libraries in float32 differ by one unit in the last place (1.2e-7), and scaling rounds a few times more.
ROTARY_RELATIVE = 5e-7
# Another inverse DCT and another chroma upsampling; a decoder that is connected wrongly (swapped channels, a shifted
# plane) is off by tens of levels. On an H200 one of random colours, resized smooth, differed by less than 0.01.
GPU_JPEG_MEAN_LEVELS = 2.0


@dataclass(frozen=True)
class Tolerances:
    """Limits for one precision."""

    values: float  # largest difference in a row of a graph's output, as a share of max(1, the row's largest value)
    roi_cosine: float  # least cosine between two RoI maps
    # Least centred correlation between two maps' logits, for a trained RPN: a map's information is its contrast, and
    # any two nearly flat maps have a cosine near 1. Seen over 19 questions to the small trained model. With random
    # weights of the same sizes and nothing kept in fp16, int4 had 0.93 where the maps' cosine was 0.9994, and the
    # trained model has 0.998: there the contrast is a tenth as large, and no limit separates right from wrong.
    roi_correlation: float
    roi_map: float  # a cell this close to the threshold may be on either side of it
    token_logit: float  # as `values`, of a whole answer's logits: two tokens this close may change places
    # Gates of `sdrpn verify`:
    mean: float  # mean difference in a graph's output, on the scale of `values`
    cosine: float  # least cosine of a graph's output as one vector
    box_iou: float  # least mean overlap of crops, over questions without ties
    answers: float  # least share of questions with the same crops, and with the same tokens, ties included
    # Largest relative error of the vision tower's outputs as one vector, or that of the tower in bf16 if it is larger.
    # Vision towers lose detail in low precision, which no figure of the maps or the text shows.
    noise: float


@dataclass(frozen=True)
class Measure:
    """A measured quantity, and the entry of Tolerances that limits it."""

    kind: str  # its name in checks and gates
    limit: str
    more_is_better: bool = False  # whether the limit is a minimum; else a maximum


_MEASURES = (
    Measure("values", "values"),
    Measure("mean", "mean"),
    Measure("cosine", "cosine", True),
    Measure("noise", "noise"),
    Measure("roi cosine", "roi_cosine", True),
    Measure("roi correlation", "roi_correlation", True),
    Measure("box IoU", "box_iou", True),
    Measure("same crops", "answers", True),
    Measure("token agreement", "answers", True),
)
MEASURES: Mapping[str, Measure] = {measure.kind: measure for measure in _MEASURES}
_LEAST = frozenset(measure.limit for measure in _MEASURES if measure.more_is_better)  # the other limits are maxima

TOLERANCES = {
    "fp32": Tolerances(
        # The same arithmetic in another order: 2e-6 over graphs of 2 to 6 layers (5e-6 for sharp RoI scores). The rest
        # is margin for 16 layers of 4096 channels, and for rotary angles: one rounding at position 4095 is 2e-4
        # radians.
        values=5e-4,
        # Maps are positive, so any two have a cosine far above 0: only the last digits matter. 1 - 1e-12 was seen.
        roi_cosine=0.99999,
        roi_correlation=0.99999,
        # Vision, trunk and RPN in a row moved no blurred cell by more than 2e-6.
        roi_map=1e-5,
        # Vision, trunk and tail in a row, both passes: 1.5e-6 was seen, and two logits move against each other.
        token_logit=2e-5,
        mean=2e-5,  # 1.8e-7 was seen
        cosine=0.999999,
        box_iou=0.99,
        answers=1.0,
        noise=1e-5,  # 1.1e-6 was seen, for Qwen's towers and CLIP
    ),
    "fp16": Tolerances(
        # Weights and activations are rounded to 11 bits (5e-4) at every matrix product: 1.6e-3 over graphs of 2 to 6
        # layers, 7e-3 for sharp RoI scores.
        values=2e-2,
        roi_cosine=0.999,  # 1 - 1.2e-4 was seen
        roi_correlation=0.9999,  # 1 - 5e-7 was seen
        roi_map=1e-2,  # 4.6e-3 was seen
        token_logit=1e-2,  # 1.3e-3 was seen, and two logits move against each other
        mean=2e-3,  # 6.6e-4 was seen
        cosine=0.9999,  # 1 - 2e-7 was seen
        box_iou=0.95,
        answers=1.0,
        noise=5e-3,  # 8.7e-4 was seen, where bf16 has 8e-3 to 1.3e-2
    ),
    # Weights in blocks of integers; ONNX Runtime also rounds activations to 8 bits. Seen over four layers of random
    # weights, which have no redundancy: worse than a trained model.
    "int8": Tolerances(
        values=1e-1,  # 2.5e-2 was seen
        roi_cosine=0.999,  # 1 - 2.6e-4 was seen
        roi_correlation=0.998,  # 1 - 2.4e-4 was seen
        roi_map=3e-2,
        token_logit=5e-2,
        mean=2e-2,  # 5.7e-3 was seen
        cosine=0.999,  # 1 - 9e-5 was seen
        box_iou=0.9,
        answers=0.9,
        noise=5e-2,  # 2.4e-2 was seen with the tower in 8 bits
    ),
    # These limits detect wrongly connected graphs. They do not measure what 4 bits cost in answers.
    "int4": Tolerances(
        values=1.0,  # 0.34 was seen
        roi_cosine=0.95,  # 0.969 was seen
        roi_correlation=0.97,  # 1 - 7e-4 was seen, 1 - 2.3e-3 with nothing kept in fp16
        roi_map=0.3,
        token_logit=0.5,
        mean=2e-1,  # 7e-2 was seen
        cosine=0.9,  # 0.985 was seen
        box_iou=0.5,
        answers=0.75,
        noise=5e-2,  # the tower has 8 bits at least
    ),
    # Rounded to 8 bits (4e-3) where fp16 rounds to 11: eight times as coarse. Measured by simulation, see
    # `compare/simulation.py`, as for nvfp4; over random weights and a small trained model.
    "bf16": Tolerances(
        values=1.5e-1,  # 2.6e-2 was seen
        roi_cosine=0.999,  # 1 - 2e-5 was seen
        roi_correlation=0.999,  # 1 - 4.5e-5 was seen
        roi_map=5e-2,
        token_logit=8e-2,
        mean=1.6e-2,  # 2.9e-3 was seen
        cosine=0.999,  # 1 - 2.3e-5 was seen
        box_iou=0.9,
        answers=0.9,
        noise=2e-2,  # 9.7e-3 was seen
    ),
    # Weights with 4 significant bits (6e-2), and inputs as well if calibrated, with nothing kept in fp16.
    "fp8": Tolerances(
        values=0.6,  # 0.19 was seen, without a calibration 0.11
        roi_cosine=0.99,  # 1 - 1.1e-3 was seen
        roi_correlation=0.97,  # 1 - 1e-4 was seen, 1 - 5.1e-3 with nothing kept in fp16
        roi_map=0.15,
        token_logit=0.3,
        mean=1e-1,  # 3.2e-2 was seen
        cosine=0.98,  # 0.9972 was seen
        box_iou=0.8,
        answers=0.85,
        noise=2e-1,  # 0.10 was seen with the tower in fp8
    ),
    # As int4, with inputs in 4 bits as well.
    "nvfp4": Tolerances(
        values=1.5,  # 0.69 was seen
        roi_cosine=0.95,  # 0.9906 was seen
        roi_correlation=0.95,  # 0.9934 was seen, 0.9880 with nothing kept in fp16
        roi_map=0.3,
        token_logit=0.5,
        mean=3e-1,  # 0.13 was seen
        cosine=0.85,  # 0.9465 was seen
        box_iou=0.5,
        answers=0.75,
        noise=2e-1,  # the tower has fp8 at least
    ),
}


# Additional limits for a KV cache in 8 bits: they apply where the limits of a variant's precision are tighter.
# Seen over random weights of up to 8 layers, and over the small trained model.
CACHE_TOLERANCES = {
    "int8": Tolerances(
        # A row's entries are rounded to 1/254 of the largest, 4e-3; through three layers 2.1e-2 was seen.
        values=5e-2,
        roi_cosine=0.9995,  # 1 - 5e-6 was seen: the RPN's own caches are not in 8 bits
        roi_correlation=0.9995,  # 1 - 3.4e-6 was seen
        roi_map=1e-2,
        token_logit=2e-2,
        mean=1e-2,  # 5e-3 was seen
        cosine=0.9995,  # 1 - 7e-5 was seen
        box_iou=0.95,
        answers=0.95,
        noise=0.0,
    ),
    "fp8": Tolerances(
        # Four significant bits of every number: up to 1/16 of the largest entry.
        values=2e-1,  # 7.3e-2 was seen
        roi_cosine=0.999,  # 1 - 1.6e-4 was seen
        roi_correlation=0.999,  # 1 - 1.2e-4 was seen
        roi_map=3e-2,
        token_logit=5e-2,
        mean=3e-2,  # 1.1e-2 was seen
        cosine=0.998,  # 1 - 6.6e-4 was seen
        box_iou=0.9,
        answers=0.9,
        noise=0.0,
    ),
}


def more_is_better(kind: str) -> bool:
    """Whether the limit of this kind of check is a minimum; else it is a maximum."""
    return kind in MEASURES and MEASURES[kind].more_is_better


def tolerances_of(numerics: str) -> Tolerances:
    """The limits for `Variant.numerics`: a precision as in a manifest, optionally with a KV cache in 8 bits.

    Raises: BadInput for an unknown precision or cache form
    """
    precision, _, kv_cache = numerics.partition("-kv-")
    if precision not in TOLERANCES:
        raise BadInput(f"precision {precision!r} has no limits; expected one of {', '.join(TOLERANCES)}")
    if not kv_cache:
        return TOLERANCES[precision]
    if kv_cache not in CACHE_TOLERANCES:
        raise BadInput(f"caches in {kv_cache!r} have no limits; expected one of {', '.join(CACHE_TOLERANCES)}")
    return _looser(TOLERANCES[precision], CACHE_TOLERANCES[kv_cache])


def _looser(one: Tolerances, other: Tolerances) -> Tolerances:
    least = {name: min(getattr(one, name), getattr(other, name)) for name in _LEAST}
    most = {name: max(getattr(one, name), getattr(other, name)) for name in vars(one) if name not in _LEAST}
    return Tolerances(**least, **most)
