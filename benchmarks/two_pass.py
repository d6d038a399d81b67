"""What the second look costs: every case of the two-pass runtime, each stage by itself, and the same in PyTorch.

A random model of the size that the reference implementation was timed with (hidden 512, 12 layers, K=6, T=3, a
prompt of 651 tokens, 16 new tokens). The number of crops is forced; the RPN still runs. In every round all cases, all
stages and both sides take turns, so that a busy machine slows them alike. A case is compared with the plain answers
right before and after it; figures and ratios are medians over the rounds.

    python benchmarks/two_pass.py                     # ONNX Runtime and PyTorch, one and two threads
    python benchmarks/two_pass.py --no-torch --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from sdrpn.bundle.bundle import GraphInfo, open_bundle
from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.images.image import base_pixels, crop_pixels, image_digest, open_image
from sdrpn.method.grids import FloatArray
from sdrpn.method.roi import Crop, Decide, RoiDecision, RoiPolicy, decide_crops
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec
from sdrpn.runtime import Answer, Session
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from sdrpn.runtime.backends.runner import Buffer

SPEC = ModelSpec(
    vision=VisionSpec(image_size_px=336, patch_size_px=14, width=256, layers=5, heads=4, mlp_width=1024),
    llm=LlmSpec(
        vocabulary=16000, width=512, layers=12, heads=8, kv_heads=8, head_dim=64, mlp_width=1376, max_context=4096
    ),
    tap_layer=6,
    rpn=RpnSpec(layers=3),
    prompt=PromptSpec(eos_token_ids=()),  # answers always have their full length
)
IMAGE_WH = (1344, 1008)
NEW_TOKENS = 16
BEFORE = tuple(range(3, 38))  # 35 tokens, as in front of LLaVA's image
AFTER = tuple(range(40, 80))  # 35 + 576 + 40 = 651
OTHER_AFTER = tuple(range(80, 120))
MASK_TOKENS = 115

# Relative to the prefill of plain LLaVA's LLM in the same round.
PREFILL_LIMITS = {"no box": 1.25, "mask": 1.55, "one box": 2.35, "second question": 0.35}
# The same for the reference implementation, which computes everything again.
PREFILL_OFFICIAL = {"no box": 1.66, "mask": 1.91, "one box": 2.68}
STAGES_LIMIT = 1.08
PYTHON_SHARE_LIMIT = 0.05
TORCH_LIMITS = {"one box": 1.3}  # elsewhere 1
MEMORY_LIMIT_BYTES = 400_000_000

Round = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One way a question can go. `crops` None: plain LLaVA."""

    name: str
    crops: tuple[Crop, ...] | None
    second: bool = False  # asked after another question about the same image


BOX = Crop((100, 100, 600, 500), None, None)
OTHER_BOX = Crop((700, 300, 1300, 900), None, None)


def mask_crop() -> Crop:
    side = clip_of(SPEC).grid_side
    keep = np.zeros(side * side, bool)
    keep[np.linspace(0, side * side - 1, MASK_TOKENS).astype(int)] = True
    return Crop((100, 100, 1300, 900), keep.reshape(side, side), None)


CASES = (
    Case("plain", None),
    Case("no box", ()),
    Case("mask", (mask_crop(),)),
    Case("one box", (BOX,)),
    Case("two boxes", (BOX, OTHER_BOX)),
    Case("second question", (), second=True),
    Case("second, one box", (BOX,), second=True),
)


def forced(crops: tuple[Crop, ...]) -> Decide:
    """The policy's own work is done, then its crops are replaced."""

    def decide(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
        own = decide_crops(logits, SPEC.vision.grid(image_wh), RoiPolicy())
        return RoiDecision(own.boxes_cells, crops, None, own.blurred_map)

    return decide


def decide_of(case: Case) -> Decide | None:
    return None if case.crops is None else forced(case.crops)


def photograph(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (63, 84, 3), dtype=np.uint8))
    return noise.resize(IMAGE_WH, Image.Resampling.BICUBIC)


class OnnxRuntimeSide:
    """Answers through the runtime. Every first question gets an image that the session does not know."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._images = itertools.cycle([photograph(seed) for seed in range(3)])

    def ask(self, case: Case) -> Answer:
        image = next(self._images)
        self.session.forget_image()
        if case.second:
            self.session.answer_ids(image, BEFORE, OTHER_AFTER, roi=None, decide=forced(()), max_new_tokens=1)
        return self.session.answer_ids(
            image, BEFORE, AFTER, roi=None, decide=decide_of(case), max_new_tokens=NEW_TOKENS
        )

    def case_round(self, case: Case) -> Round:
        timings = self.ask(case).timings
        return {
            "prefill_s": timings.llm_prefill_s,
            "decode_per_token_s": timings.decode_per_token_s,
            "total_s": timings.total_s,
        }

    def stage_round(self) -> Round:
        """One box, stage by stage: the same calls with the same shapes, one at a time, nothing in between."""
        measured = {name: seconds(call) for name, call in self._stages(next(self._images))}
        self.session.forget_image()  # its rows were overwritten behind its back
        return measured

    def _stages(self, image: Image.Image) -> Iterator[tuple[str, Callable[[], object]]]:
        vision, two_pass, decoder = clip_of(SPEC), self.session._two_pass, self.session._decoder
        embedding, slot = self.session._embedding, decoder.slots.all[0]
        prefix = len(BEFORE) + vision.image_tokens
        rows, stop = prefix + len(AFTER), prefix + vision.image_tokens + len(AFTER)
        embeds = embedding.rows(range(stop))
        logits = np.zeros((vision.grid_side, vision.grid_side), np.float32)
        pixels, crop = base_pixels(image, vision)[None], crop_pixels(image, BOX.box_xyxy_px, vision)[None]

        def trunk() -> None:
            decoder.slots.reset(slot, rows + NEW_TOKENS)
            decoder.run_trunk(slot, embeds[:rows], 0)

        def crop_trunk() -> None:
            slot.truncate(prefix)
            decoder.slots.reserve(slot, stop + NEW_TOKENS)
            decoder.run_trunk(slot, embeds[prefix:], prefix)

        def decode() -> None:
            for position in range(stop, stop + NEW_TOKENS - 1):
                decoder.step_one(slot, embedding.rows([7]), position)

        base_feed, crop_feed = (two_pass._looks._squares(1, filler(values)) for values in (pixels, crop))
        yield "preprocess", lambda: (image_digest(open_image(image)), base_pixels(image, vision))
        yield "vision", lambda: two_pass._looks._encoded_squares(base_feed)
        yield "trunk", trunk
        yield "rpn", lambda: decoder.run_rpn(slot, rows)
        yield "roi decode", lambda: forced((BOX,))(logits, image.size)
        yield "crop preprocess", lambda: crop_pixels(image, BOX.box_xyxy_px, vision)
        yield "crop vision", lambda: two_pass._looks._encoded_squares(crop_feed)
        yield "tail, prefix", lambda: decoder.run_tail(slot, 0, prefix)
        yield "crop trunk", crop_trunk
        yield "tail, rest", lambda: decoder.run_tail(slot, prefix, stop)
        yield "decode", decode


def filler(values: FloatArray) -> Callable[[Buffer], None]:
    """What writes these pixels where the vision graph reads them."""
    return lambda buffer: buffer.write(values)


class TorchSide:
    """The same question through the PyTorch reference, which computes everything again."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch

        from sdrpn.checkpoint import open_checkpoint
        from sdrpn.model.base import model_from_checkpoint

        torch.set_num_threads(threads)
        with open_checkpoint(checkpoint) as source:
            self._model = model_from_checkpoint(source)
        self._image = photograph(0)

    def seconds(self, case: Case) -> float:
        from sdrpn.model.reference import reference_answer

        return seconds(
            lambda: reference_answer(
                self._model, self._image, BEFORE, AFTER, roi=None, decide=decide_of(case), max_new_tokens=NEW_TOKENS
            )
        )


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_rounds(bundle: Path, checkpoint: Path, threads: int, rounds: int, with_torch: bool) -> dict[str, Any]:
    """All cases, all stages, both sides, in turns."""
    torch_side = TorchSide(checkpoint, threads) if with_torch else None
    cases: dict[str, list[Round]] = {case.name: [] for case in CASES}
    stages: list[Round] = []
    with Session.open(bundle, threads=threads) as session:
        side = OnnxRuntimeSide(session)
        for number in range(rounds + 1):
            measured = one_round(side, torch_side)
            parts = side.stage_round()
            if number:  # the first round warms up
                for name, figures in measured.items():
                    cases[name].append(figures)
                stages.append(parts)
            progress(threads, number, rounds)
    return {
        "cases": {name: medians(each) for name, each in cases.items()},
        "stages": medians(stages),
        "whole_over_stages": over_stages(cases, stages),
    }


def one_round(side: OnnxRuntimeSide, torch_side: TorchSide | None) -> dict[str, Round]:
    """Every case once, each between two plain answers."""
    plain, *others = CASES
    before, figures = side.case_round(plain), {}
    for case in others:
        measured, after = side.case_round(case), side.case_round(plain)
        around_s = (before["prefill_s"] + after["prefill_s"]) / 2
        figures[case.name] = {**measured, "prefill_over_plain": measured["prefill_s"] / around_s}
        before = after
    figures = {plain.name: {**before, "prefill_over_plain": 1.0}, **figures}
    if torch_side is not None:
        for case in CASES:
            torch_s = torch_side.seconds(case)
            figures[case.name] |= {"torch_s": torch_s, "torch_over_ours": torch_s / figures[case.name]["total_s"]}
    return figures


def medians(rounds: list[Round]) -> Round:
    return {name: statistics.median(measured[name] for measured in rounds) for name in rounds[0]}


def over_stages(cases: Mapping[str, list[Round]], stages: list[Round]) -> float:
    pairs = zip(cases["one box"], stages, strict=True)
    return statistics.median(whole["total_s"] / sum(parts.values()) for whole, parts in pairs)


class WatchedBackend(OnnxRuntimeBackend):
    """Adds up the seconds inside ONNX Runtime."""

    inside_s = 0.0

    def load(self, graph: GraphInfo, path: Path) -> OnnxRuntimeRunner:
        runner = super().load(graph, path)
        bind = runner.bind

        def watched(feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Callable[[], None]:
            step = bind(feeds, results)

            def run() -> None:
                self.inside_s += seconds(step)

            return run

        runner.bind = watched  # type: ignore[method-assign]
        return runner


def python_share(bundle_dir: Path, threads: int, rounds: int) -> float:
    """Median share of the decode steps that is not spent inside ONNX Runtime."""
    bundle, backend, shares = open_bundle(bundle_dir), WatchedBackend("onnxruntime", threads), []
    with Session(bundle, bundle.variant(), backend) as session:
        for number in range(rounds + 1):
            session.answer_ids(photograph(0), BEFORE, AFTER, roi=None, max_new_tokens=1)
            prefilled = session.answer_ids(photograph(0), BEFORE, AFTER, roi=None, max_new_tokens=2)  # binds the step
            assert prefilled.timings.decode_s
            backend.inside_s = 0.0
            answer = session.answer_ids(photograph(0), BEFORE, AFTER, roi=None, max_new_tokens=64)
            prefill_s = answer.timings.llm_prefill_s
            decode_s = sum(answer.timings.decode_s)
            if number:
                shares.append(1.0 - (backend.inside_s - prefill_s) / decode_s)
    return statistics.median(shares)


def peak_memory(bundle: Path) -> dict[str, float]:
    """Peak RSS of a fresh process that answers with one box, beside its weights and caches."""
    command = [sys.executable, str(Path(__file__).with_name("peak_memory.py")), str(bundle)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def report(results: dict[str, Any]) -> None:
    print(results["machine"])
    for threads, figures in results["threads"].items():
        print(f"\n{threads} thread(s), medians of {results['rounds']} rounds")
        print(f"{'case':17}{'prefill s':>10}{'/ plain':>9}{'limit':>7}{'official':>10}", end="")
        print(f"{'total s':>9}{'torch s':>9}{'torch / ours':>14}")
        for name, case in figures["cases"].items():
            limit, official = PREFILL_LIMITS.get(name, ""), PREFILL_OFFICIAL.get(name, "")
            print(
                f"{name:17}{case['prefill_s']:10.3f}{case['prefill_over_plain']:9.2f}{limit:>7}{official:>10}", end=""
            )
            print(f"{case['total_s']:9.3f}", end="")
            print(f"{case['torch_s']:9.3f}{case['torch_over_ours']:14.2f}" if "torch_s" in case else "")
        stages = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in figures["stages"].items())
        print(f"one box, each stage by itself, ms: {stages}")
        print(f"whole / sum of its stages: {figures['whole_over_stages']:.3f} (limit {STAGES_LIMIT})")
        print(f"Python's share of a decode step: {figures['python_share']:.1%} (limit {PYTHON_SHARE_LIMIT:.0%})")
    memory = results["memory"]
    extra = memory["peak_bytes"] - memory["weight_bytes"] - memory["cache_bytes"]
    parts = f"weights {memory['weight_bytes'] / 1e6:.0f} + caches {memory['cache_bytes'] / 1e6:.0f}"
    print(f"\npeak RSS {memory['peak_bytes'] / 1e6:.0f} MB = {parts} + {extra / 1e6:.0f} MB", end=" ")
    print(f"(limit {MEMORY_LIMIT_BYTES / 1e6:.0f})")


def missed(results: dict[str, Any]) -> list[str]:
    """Every limit that was not kept."""
    lines = []
    for threads, figures in results["threads"].items():
        for name, case in figures["cases"].items():
            if case["prefill_over_plain"] > PREFILL_LIMITS.get(name, float("inf")):
                lines.append(f"{threads} thread(s), {name}: prefill {case['prefill_over_plain']:.2f} x plain")
            if case.get("torch_over_ours", float("inf")) < TORCH_LIMITS.get(name, 1.0):
                lines.append(f"{threads} thread(s), {name}: PyTorch takes {case['torch_over_ours']:.2f} x our time")
        if figures["whole_over_stages"] > STAGES_LIMIT:
            lines.append(f"{threads} thread(s): the whole is {figures['whole_over_stages']:.3f} x its stages")
        if figures["python_share"] > PYTHON_SHARE_LIMIT:
            lines.append(f"{threads} thread(s): Python's share is {figures['python_share']:.1%}")
    memory = results["memory"]
    if memory["peak_bytes"] > memory["weight_bytes"] + memory["cache_bytes"] + MEMORY_LIMIT_BYTES:
        lines.append("peak memory")
    return lines


def progress(threads: int, number: int, rounds: int) -> None:
    print(f"\r{threads} thread(s): round {number} of {rounds}", end="\n" if number == rounds else "", file=sys.stderr)


@contextmanager
def folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with folder(args.keep) as work:
        checkpoint, bundle = work / "checkpoint", work / "bundle"
        if not bundle.exists():
            write_random_checkpoint(checkpoint, SPEC)
            export_bundle(checkpoint, bundle, ExportOptions())
        by_threads = {}
        for threads in args.threads:
            by_threads[threads] = measure_rounds(bundle, checkpoint, threads, args.rounds, not args.no_torch)
            by_threads[threads]["python_share"] = python_share(bundle, threads, args.rounds)
        memory = peak_memory(bundle)
    machine = f"{platform.machine()}, ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}"
    return {"machine": machine, "rounds": args.rounds, "threads": by_threads, "memory": memory}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint and the bundle (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args)
    results["missed"] = missed(results)
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        report(results)
        for line in results["missed"]:
            print(f"missed: {line}")
    return 1 if results["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
