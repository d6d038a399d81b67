"""What weights in fewer bits change of whole answers: RoI map, boxes, whether there is a crop, tokens.

python benchmarks/quantized_answers.py fp32 int4-rtn int4-gptq:fused-int4-cpu --samples 200

Bundles (with the variant that suits a CPU, unless one is named) are asked about the same held-out scenes as
`sdrpn eval --task tags` takes; all are compared with the first. Everything runs on ONNX Runtime, as `sdrpn ask` does;
bf16 and nvfp4 as `sdrpn verify` simulates them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np

from sdrpn.bundle.bundle import open_bundle
from sdrpn.compare.answers import centred_correlation
from sdrpn.compare.overlap import overlap
from sdrpn.compare.simulation import runnable_bundle
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Session
from sdrpn.tags.task import SPLITS, TagSample, tag_samples
from sdrpn.terminal.output import print_table
from sdrpn.terminal.progress import progress

MAX_NEW_TOKENS = 8
# What quantised weights are allowed to cost: RoI map cosine, box IoU (means), share of equal decisions.
LEAST_COSINE, LEAST_IOU, LEAST_DECISIONS = 0.995, 0.95, 0.98


@dataclass(frozen=True)
class Change:
    """One bundle against the first. Means over the questions, but for the least of two."""

    name: str
    roi_correlation: float  # of the logits, centred
    roi_correlation_min: float
    roi_cosine: float
    roi_cosine_min: float
    box_iou: float
    same_decision: float  # share: both crop, or neither does
    same_boxes: float
    same_answer: float
    exact: float  # share of true answers

    @property
    def kept(self) -> bool:
        """Whether it is within the bounds."""
        return self.roi_cosine >= LEAST_COSINE and self.box_iou >= LEAST_IOU and self.same_decision >= LEAST_DECISIONS


def ask_all(names: Sequence[str], samples: Sequence[TagSample], policy: RoiPolicy, threads: int) -> list[list[Answer]]:
    """For every bundle the answers to all questions."""
    answers: list[list[Answer]] = [[] for _ in names]
    with ExitStack() as stack, progress("answers", "answers") as advance:
        sessions = [opened(name, threads, stack) for name in names]
        for number, sample in enumerate(samples):
            for own, session in zip(answers, sessions, strict=True):
                own.append(
                    session.answer(sample.image, sample.question, roi=policy, max_new_tokens=MAX_NEW_TOKENS, trace=True)
                )
            advance((number + 1) * len(names), len(samples) * len(names))
    return answers


def opened(name: str, threads: int, stack: ExitStack) -> Session:
    """BUNDLE:VARIANT:BACKEND:HOW, or the first of these; what ONNX Runtime has no kernels for is simulated.

    HOW: accurate, optimized, or the block of activations.
    """
    path, variant, backend, how = (*name.split(":"), "", "", "")[:4]
    bundle = open_bundle(path)
    chosen = bundle.variant(variant or None)
    runs = stack.enter_context(runnable_bundle(bundle, chosen))
    session = Session.open(
        runs.path,
        variant=chosen.name,
        threads=threads,
        backend=backend or "onnxruntime",
        accurate=how == "accurate",
        activation_block=int(how) if how.isdigit() else None,
        optimized=how == "optimized",
        verify=False,
    )
    return stack.enter_context(session)


def change(name: str, found: Sequence[Answer], exact: Sequence[Answer], samples: Sequence[TagSample]) -> Change:
    pairs = list(zip(found, exact, strict=True))
    cosines = [cosine(answer, other) for answer, other in pairs]
    correlations = [correlation(answer, other) for answer, other in pairs]
    return Change(
        name=name,
        roi_correlation=float(np.mean(correlations)),
        roi_correlation_min=min(correlations),
        roi_cosine=float(np.mean(cosines)),
        roi_cosine_min=min(cosines),
        box_iou=mean(overlap(answer.boxes_xyxy_px, other.boxes_xyxy_px) for answer, other in pairs),
        same_decision=mean(bool(answer.boxes_xyxy_px) == bool(other.boxes_xyxy_px) for answer, other in pairs),
        same_boxes=mean(answer.boxes_xyxy_px == other.boxes_xyxy_px for answer, other in pairs),
        same_answer=mean(answer.token_ids == other.token_ids for answer, other in pairs),
        exact=mean(
            answer.text.replace(" ", "").strip() == sample.answer for answer, sample in zip(found, samples, strict=True)
        ),
    )


def mean(values: object) -> float:
    return float(np.mean(list(values)))  # type: ignore[call-overload]


def cosine(found: Answer, exact: Answer) -> float:
    a, b = (np.asarray(answer.roi_map, np.float64).ravel() for answer in (found, exact))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def correlation(found: Answer, exact: Answer) -> float:
    logits = [answer.trace.roi_logits for answer in (found, exact) if answer.trace is not None]
    assert logits[0] is not None
    assert logits[1] is not None
    return float(centred_correlation(logits[0], logits[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="BUNDLE[:VARIANT[:BACKEND[:HOW]]]",
        help="the first is what all are compared with",
    )
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--split", choices=SPLITS, default="heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="threshold of the RoI policy (default: the small model's)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    samples = list(tag_samples(args.split, args.samples, args.seed))
    answers = ask_all(args.bundles, samples, RoiPolicy(args.threshold), args.threads)
    changes = [change(name, found, answers[0], samples) for name, found in zip(args.bundles, answers, strict=True)]
    if args.json:
        print(json.dumps([asdict(change) for change in changes], indent=1))
    else:
        columns = (
            "bundle",
            "centred correlation",
            "least",
            "RoI cosine",
            "least",
            "box IoU",
            "same decision",
            "same boxes",
            "same answer",
            "exact",
        )
        print_table(
            columns,
            [(change.name, *(f"{value:.4f}" for value in list(asdict(change).values())[1:])) for change in changes],
        )
    missed = [change.name for change in changes if not change.kept]
    print("\n".join(f"missed: {name}" for name in missed), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
