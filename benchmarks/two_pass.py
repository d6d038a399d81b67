"""What the second look costs: every case of the two-pass runtime, each stage by itself, and the same in PyTorch.

A random model of the size that the reference implementation was timed with (hidden 512, 12 layers, K=6, T=3, a
prompt of 651 tokens, 16 new tokens). The number of crops is forced; the RPN still runs. All cases and both sides take
turns within one run, so that a busy machine slows them alike; figures are medians, claims are ratios.

    python benchmarks/two_pass.py                     # ONNX Runtime and PyTorch, one and two threads
    python benchmarks/two_pass.py --no-torch --json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from sdrpn.bundle import GraphInfo, open_bundle
from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.roi import Crop, RoiDecision, RoiPolicy, decide_crops
from sdrpn.runtime import Answer, Session, Timings
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from sdrpn.runtime.runner import Buffer
from sdrpn.runtime.sampling import GREEDY
from sdrpn.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec, VisionSpec

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

# What the targets are relative to: the prefill of the LLM alone, of plain LLaVA, in the same run.
PREFILL_LIMITS = {"no box": 1.25, "mask": 1.55, "one box": 2.35, "second question": 0.35}
# The reference implementation, which computes everything again (from its own published structure).
PREFILL_OFFICIAL = {"no box": 1.66, "mask": 1.91, "one box": 2.68}
STAGES_LIMIT = 1.08
PYTHON_SHARE_LIMIT = 0.05
MEMORY_LIMIT_BYTES = 400_000_000


@dataclass(frozen=True)
class Case:
    """One way a question can go. `crops` None: plain LLaVA."""

    name: str
    crops: tuple[Crop, ...] | None
    second: bool = False  # asked after another question about the same image


def cases() -> list[Case]:
    whole = Crop((100, 100, 600, 500), None, None)
    other = Crop((700, 300, 1300, 900), None, None)
    keep = np.zeros(SPEC.vision.image_tokens, bool)
    keep[:: SPEC.vision.image_tokens // MASK_TOKENS] = True
    keep[np.flatnonzero(keep)[MASK_TOKENS:]] = False
    mask = Crop((100, 100, 1300, 900), keep.reshape(SPEC.vision.grid_side, -1), None)
    return [
        Case("plain", None),
        Case("no box", ()),
        Case("mask", (mask,)),
        Case("one box", (whole,)),
        Case("two boxes", (whole, other)),
        Case("second question", (), second=True),
        Case("second question, one box", (whole,), second=True),
    ]


def forced(crops: tuple[Crop, ...]) -> Callable[[np.ndarray, tuple[int, int]], RoiDecision]:
    """The policy's own work is done, then its crops are replaced."""

    def decide(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
        own = decide_crops(logits, image_wh, RoiPolicy(), image_size_px=SPEC.vision.image_size_px)
        return RoiDecision(own.boxes_cells, crops, None, own.blurred_map)

    return decide


def ask(session: Session, image: Image.Image, case: Case) -> Answer:
    decide = None if case.crops is None else forced(case.crops)
    if case.second:
        session.answer_ids(image, BEFORE, OTHER_AFTER, decide=decide, max_new_tokens=1)
    else:
        session.answer_ids(blank(), BEFORE, AFTER, roi=None, max_new_tokens=1)  # forget the image
    return session.answer_ids(image, BEFORE, AFTER, roi=None, decide=decide, max_new_tokens=NEW_TOKENS)


def photograph() -> Image.Image:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (63, 84, 3), dtype=np.uint8))
    return noise.resize(IMAGE_WH, Image.Resampling.BICUBIC)


def blank() -> Image.Image:
    return Image.new("RGB", IMAGE_WH)


def measure_answers(bundle: Path, threads: int, runs: int, torch_side: TorchSide | None) -> dict[str, object]:
    """Medians of all cases, ONNX Runtime and PyTorch taking turns."""
    image = photograph()
    answers: dict[str, list[Timings]] = {case.name: [] for case in cases()}
    torch_s: dict[str, list[float]] = {case.name: [] for case in cases()}
    with Session.open(bundle, threads=threads) as session:
        for run in range(runs + 1):
            for case in cases():
                timings = ask(session, image, case).timings
                seconds = torch_side.seconds(image, case) if torch_side is not None else None
                if run:  # the first round warms up
                    answers[case.name].append(timings)
                    if seconds is not None:
                        torch_s[case.name].append(seconds)
    return {name: summary(answers[name], torch_s[name]) for name in answers}


def summary(timings: list[Timings], torch_s: list[float]) -> dict[str, float | None]:
    stage_names = [name for name in Timings.__dataclass_fields__ if name not in ("decode_s",)]
    figures: dict[str, float | None] = {
        name: statistics.median(getattr(t, name) for t in timings) for name in stage_names
    }
    figures["llm_prefill_s"] = statistics.median(t.llm_prefill_s for t in timings)
    figures["decode_per_token_s"] = statistics.median(t.decode_per_token_s for t in timings)
    figures["torch_total_s"] = statistics.median(torch_s) if torch_s else None
    return figures


class TorchSide:
    """The same question through the PyTorch reference, which computes everything again."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch

        from sdrpn.checkpoint import open_checkpoint
        from sdrpn.model.llava import model_from_checkpoint

        torch.set_num_threads(threads)
        with open_checkpoint(checkpoint) as source:
            self._model = model_from_checkpoint(source)

    def seconds(self, image: Image.Image, case: Case) -> float | None:
        from sdrpn.model import reference

        start = time.perf_counter()
        reference.reference_answer(
            self._model,
            image,
            BEFORE,
            AFTER,
            roi=None,
            decide=None if case.crops is None else forced(case.crops),
            max_new_tokens=NEW_TOKENS,
        )
        return time.perf_counter() - start


def measure_stages(bundle: Path, threads: int, runs: int) -> dict[str, float]:
    """One box, every stage by itself: the same shapes, one stage repeated at a time (medians, seconds)."""
    case = next(case for case in cases() if case.name == "one box")
    image = photograph()
    with Session.open(bundle, threads=threads) as session:
        ask(session, image, case)
        stages = dict(stage_calls(session, image, case))
        return {name: statistics.median(timed(call, runs)) for name, call in stages.items()}


def timed(call: Callable[[], object], runs: int) -> Iterator[float]:
    call()
    for _ in range(runs):
        start = time.perf_counter()
        call()
        yield time.perf_counter() - start


def stage_calls(session: Session, image: Image.Image, case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    """What an answer with one box does, piece by piece."""
    from sdrpn.image import base_pixels, crop_pixels, image_digest, open_image

    vision, two_pass, decoder = SPEC.vision, session._two_pass, session._decoder
    crop = (case.crops or ())[0]
    pixels, crop_input = base_pixels(image, vision)[None], crop_pixels(image, crop.box_xyxy_px, vision)[None]
    rows, prefix = len(BEFORE) + vision.image_tokens + len(AFTER), len(BEFORE) + vision.image_tokens
    embeds = np.zeros((rows, SPEC.llm.width), np.float32)
    embeds[:] = session._embedding.rows(np.arange(rows) % SPEC.llm.vocabulary)
    roi = embeds[: vision.image_tokens + len(AFTER)]
    stop = prefix + len(roi)
    first_length = rows + NEW_TOKENS

    def trunk() -> None:
        decoder.reset(first_length)
        decoder.run_trunk(embeds, 0)

    def rpn() -> None:
        decoder.valid["rpn"] = 0
        decoder.run_rpn(rows)

    def tail_prefix() -> None:
        decoder.run_tail(0, prefix)

    def crop_trunk() -> None:
        decoder.truncate(prefix)
        decoder.reserve(stop + NEW_TOKENS)
        decoder.run_trunk(roi, prefix)

    def step() -> None:
        for position in range(stop, stop + NEW_TOKENS - 1):
            decoder.step(session._embedding.rows([7]), position)

    def decode_map() -> object:
        return forced(case.crops or ())(np.zeros((vision.grid_side,) * 2, np.float32), image.size)

    yield "preprocess", lambda: (open_image(image), image_digest(image), base_pixels(image, vision))
    yield "vision", lambda: two_pass._encode(pixels)
    yield "trunk", trunk
    yield "rpn", rpn
    yield "roi decode", decode_map
    yield "crop preprocess", lambda: crop_pixels(image, crop.box_xyxy_px, vision)
    yield "crop vision", lambda: two_pass._encode(crop_input)
    yield "tail, prefix", tail_prefix
    yield "crop trunk", crop_trunk
    yield "tail, crop and question", lambda: decoder.run_tail(prefix, stop)
    yield "decode, all steps", step


class WatchedBackend(OnnxRuntimeBackend):
    """Adds up the seconds inside ONNX Runtime."""

    def __init__(self, threads: int) -> None:
        super().__init__("onnxruntime", threads)
        self.inside_s = 0.0

    def load(self, graph: GraphInfo, path: Path) -> OnnxRuntimeRunner:
        runner = super().load(graph, path)
        bind = runner.bind

        def watched(feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Callable[[], None]:
            step = bind(feeds, results)

            def run() -> None:
                start = time.perf_counter()
                step()
                self.inside_s += time.perf_counter() - start

            return run

        runner.bind = watched  # type: ignore[method-assign]
        return runner


def python_share(bundle_dir: Path, threads: int, runs: int) -> float:
    """Median share of a decode step that is not spent inside ONNX Runtime."""
    backend = WatchedBackend(threads)
    bundle = open_bundle(bundle_dir)
    shares = []
    with Session(bundle, bundle.variant(), backend) as session:
        for _ in range(runs + 1):
            stream = session._start(photograph(), BEFORE, AFTER, None, 64, GREEDY, (), False)
            next(stream._tokens)
            backend.inside_s = 0.0
            decode_s = sum(stream.finish().timings.decode_s)
            shares.append(1.0 - backend.inside_s / decode_s)
    return statistics.median(shares[1:])


def peak_memory(bundle: Path) -> dict[str, float]:
    """Peak RSS of a fresh process that answers with one box, and what it is allowed."""
    command = [sys.executable, __file__, "--memory-of", str(bundle)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def memory_of(bundle: Path) -> dict[str, float]:
    case = next(case for case in cases() if case.name == "one box")
    with Session.open(bundle) as session:
        ask(session, photograph(), case)
        caches = [buffer for caches in session._decoder._caches.values() for buffer in caches.buffers.values()]
        cache_bytes = sum(int(np.prod(buffer.shape)) * buffer.dtype.itemsize for buffer in caches)
        variant, files = session.variant, session.bundle.manifest.files
    weight_bytes = sum(files[name].size_bytes for name in variant.files)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_bytes": peak_bytes, "weight_bytes": weight_bytes, "cache_bytes": cache_bytes}


def report(results: dict[str, object]) -> None:
    print(f"{results['machine']}")
    for threads, figures in results["threads"].items():  # type: ignore[attr-defined]
        print(f"\n{threads} thread(s), medians of {results['runs']} runs")
        print(
            f"{'case':26}{'prefill s':>10}{'/ plain':>9}{'limit':>7}{'official':>9}{'total s':>9}{'torch s':>9}{'torch/ours':>11}"
        )
        plain = figures["answers"]["plain"]["llm_prefill_s"]
        for name, case in figures["answers"].items():
            ratio, torch_s = case["llm_prefill_s"] / plain, case["torch_total_s"]
            limit, official = PREFILL_LIMITS.get(name, ""), PREFILL_OFFICIAL.get(name, "")
            torch_text = f"{torch_s:9.3f}{torch_s / case['total_s']:11.2f}" if torch_s else ""
            print(
                f"{name:26}{case['llm_prefill_s']:10.3f}{ratio:9.2f}{limit:>7}{official:>9}{case['total_s']:9.3f}{torch_text}"
            )
        print(
            "one box, each stage by itself (ms): "
            + ", ".join(f"{k} {v * 1e3:.1f}" for k, v in figures["stages"].items())
        )
        whole, stages = figures["answers"]["one box"]["total_s"], sum(figures["stages"].values())
        print(f"whole / sum of stages: {whole:.3f} / {stages:.3f} s = {whole / stages:.3f} (limit {STAGES_LIMIT})")
        print(f"Python's share of a decode step: {figures['python_share']:.1%} (limit {PYTHON_SHARE_LIMIT:.0%})")
    memory = results["memory"]
    extra = memory["peak_bytes"] - memory["weight_bytes"] - memory["cache_bytes"]  # type: ignore[index]
    print(
        f"\npeak RSS {memory['peak_bytes'] / 1e6:.0f} MB = weights {memory['weight_bytes'] / 1e6:.0f} + caches "  # type: ignore[index]
        f"{memory['cache_bytes'] / 1e6:.0f} + {extra / 1e6:.0f} MB (limit {MEMORY_LIMIT_BYTES / 1e6:.0f})"
    )  # type: ignore[index]


@contextmanager
def folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint and the bundle (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of is not None:
        print(json.dumps(memory_of(args.memory_of)))
        return
    with folder(args.keep) as work:
        checkpoint, bundle = work / "checkpoint", work / "bundle"
        if not bundle.exists():
            write_random_checkpoint(checkpoint, SPEC)
            export_bundle(checkpoint, bundle, ExportOptions())
        results = measure(checkpoint, bundle, args)
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        report(results)


def measure(checkpoint: Path, bundle: Path, args: argparse.Namespace) -> dict[str, object]:
    by_threads = {}
    for threads in args.threads:
        torch_side = None if args.no_torch else TorchSide(checkpoint, threads)
        by_threads[threads] = {
            "answers": measure_answers(bundle, threads, args.runs, torch_side),
            "stages": measure_stages(bundle, threads, args.runs),
            "python_share": python_share(bundle, threads, args.runs),
        }
    machine = f"{platform.machine()}, ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}"
    return {"machine": machine, "runs": args.runs, "threads": by_threads, "memory": peak_memory(bundle)}


if __name__ == "__main__":
    main()
