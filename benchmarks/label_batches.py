"""How fast a checkpoint labels when several questions are answered at once, and whether the labels stay the same.

Batches take turns, so that a busy machine slows them alike; figures are medians over the rounds, of the wall's time and
of the process's own.

    python examples/tiny/make_pairs.py pairs --pairs 64 --per-scene 2
    python benchmarks/label_batches.py examples/tiny/checkpoint pairs/questions.jsonl pairs/images
    python benchmarks/label_batches.py CHECKPOINT qa.jsonl images --heads heads.json --device cuda --precision bf16
    python benchmarks/label_batches.py examples/tiny/checkpoint pairs/questions.jsonl pairs/images --gate \
      --rpn examples/demo/rpn --max-new-tokens 8

With --gate it is the labels of a gate that are made, from one look and from two; "alone" is each look by itself, as an
evaluation takes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import operator
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.evaluation.looks import RpnLook
from sdrpn.evaluation.torch_answerer import TorchAnswerer
from sdrpn.gate.views import Viewer
from sdrpn.images.image import open_image
from sdrpn.labels.attention import WatchedAnswer
from sdrpn.labels.head_choice import HeadChoice, by_layer, read_heads
from sdrpn.labels.questions import DataQuestion
from sdrpn.labels.teacher import Teacher
from sdrpn.terminal.look_arguments import image_tokens
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.gate_label import GateLabelRequest
from sdrpn.workflows.teacher import TeacherRequest

BATCHES = (1, 4, 16)


@dataclass(frozen=True)
class Timing:
    """One pass over all questions."""

    batch: int
    wall_s: float
    cpu_s: float


def main() -> int:
    """Measure and print."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    if args.gate:
        print(json.dumps(_gate_measured(args), indent=1))
        return 0
    request = TeacherRequest(
        CheckpointParts(args.checkpoint),
        args.data,
        args.images,
        args.limit,
        max_new_tokens=args.max_new_tokens,
        precision=args.precision,
        device=args.device,
        image_tokens=args.image_tokens,
    )
    with open_checkpoint(args.checkpoint) as checkpoint:
        teacher = request.teacher(checkpoint)
    llm = teacher.model.spec.llm
    middle = HeadChoice("middle", ((llm.layers // 2, 0), (llm.layers // 2, 1)))
    heads = read_heads(args.heads) if args.heads else middle
    print(json.dumps(_measured(teacher, request.questions(), heads, args), indent=1))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--heads", help="as for `sdrpn label` (default: two in the middle)")
    parser.add_argument("--gate", action="store_true", help="labels of a gate; needs --rpn")
    parser.add_argument("--rpn", type=Path, help="as for `sdrpn gate-label`")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--image-tokens", type=image_tokens)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _measured(
    teacher: Teacher, questions: Sequence[DataQuestion], heads: HeadChoice, args: argparse.Namespace
) -> dict[str, Any]:
    layers = by_layer((*heads.grounding, *heads.sinks))
    timings: list[Timing] = []
    answers: dict[int, list[WatchedAnswer]] = {}
    for number in range(args.rounds + 1):
        for batch in BATCHES:
            wall, cpu = time.perf_counter(), time.process_time()
            answers[batch] = _answered(teacher, questions, layers, batch)
            timing = Timing(batch, time.perf_counter() - wall, time.process_time() - cpu)
            timings += [timing] if number else []  # the first round warms up
    first = answers[BATCHES[0]]
    found: dict[str, Any] = {"format_version": 1, "questions": len(questions), "threads": args.threads}
    for batch in BATCHES:
        own = [timing for timing in timings if timing.batch == batch]
        found[f"batch {batch}"] = {
            "ms_per_question": 1e3 * statistics.median(timing.wall_s for timing in own) / len(questions),
            "cpu_ms_per_question": 1e3 * statistics.median(timing.cpu_s for timing in own) / len(questions),
            "same_ids": [answer.token_ids for answer in answers[batch]] == [answer.token_ids for answer in first],
            "attention_difference": max(
                float(np.abs(alone.attention[layer] - together.attention[layer]).max())
                for alone, together in zip(first, answers[batch], strict=True)
                for layer in alone.attention
            ),
        }
    return found


def _gate_measured(args: argparse.Namespace) -> dict[str, Any]:
    parts = CheckpointParts(args.checkpoint, rpn=args.rpn)
    request = GateLabelRequest(
        parts,
        args.data,
        args.images,
        args.images,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
        precision=args.precision,
        device=args.device,
    )
    with parts.open() as checkpoint:
        viewer = request.viewer(checkpoint)
        answerer = TorchAnswerer(viewer.model, tokenizer_of(checkpoint))
    questions, timings = request.questions(), dict[str, list[Timing]]()
    answers: dict[str, Any] = {}
    ways = {"alone": 0, **{f"batch {batch}": batch for batch in BATCHES}}
    for number in range(args.rounds + 1):
        for name, batch in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            answers[name] = (
                _looked(viewer, questions, batch) if batch else _looked_alone(viewer, answerer, questions, args.images)
            )
            timing = Timing(batch, time.perf_counter() - wall, time.process_time() - cpu)
            timings.setdefault(name, []).extend([timing] if number else [])
    found: dict[str, Any] = {"format_version": 1, "questions": len(questions), "threads": args.threads}
    for name, own in timings.items():
        found[name] = {
            "ms_per_question": 1e3 * statistics.median(timing.wall_s for timing in own) / len(questions),
            "cpu_ms_per_question": 1e3 * statistics.median(timing.cpu_s for timing in own) / len(questions),
            "different_answers": sum(map(operator.ne, answers[name], answers["alone"])),
        }
    return found


def _looked(viewer: Viewer, questions: Sequence[DataQuestion], batch: int) -> list[Any]:
    """Both answers to each, so many questions at once."""
    starts = range(0, len(questions), batch)
    return [answers for start in starts for answers in viewer.answers_to(questions[start : start + batch])]


def _looked_alone(
    viewer: Viewer, answerer: TorchAnswerer, questions: Sequence[DataQuestion], images: Path
) -> list[list[str]]:
    """Both answers to each, each look from the picture's file on."""
    looks = (None, RpnLook(dataclasses.replace(viewer.policy, gate_threshold=-1.0)))
    return [
        [
            answerer.answer(open_image(images / question.image), question.text, look, viewer.max_new_tokens).text
            for look in looks
        ]
        for question in questions
    ]


def _answered(
    teacher: Teacher, questions: Sequence[DataQuestion], layers: dict[int, list[int]], batch: int
) -> list[WatchedAnswer]:
    found: list[WatchedAnswer] = []
    for start in range(0, len(questions), batch):
        for answer in teacher.watch_all(questions[start : start + batch], layers):
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
