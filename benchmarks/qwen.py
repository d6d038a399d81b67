"""Both passes of Qwen2.5-VL with Q-Zoom's gate: every case, and the official structure in PyTorch.

A random model of 76 million parameters (hidden 512, 12 layers, K=6, T=3; a tower of 8 blocks, 384 wide), a picture of
391 image tokens, a prompt of 441, 16 new tokens. The number of crops is forced; gate and RPN still run. The other side
has transformers' own layers and attention (sdpa) in the official order, which computes everything again for a crop.
In every round all cases and both sides take turns; a case is compared with the plain answers right before and after
it; figures and ratios are medians over the rounds.

    OMP_NUM_THREADS=1 chrt -r 1 python benchmarks/qwen.py
    OMP_NUM_THREADS=1 chrt -r 1 python benchmarks/qwen.py --optimized
    python benchmarks/qwen.py --backend openvino --no-torch --cpu-time --json
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.family import CropTokens, Layout, Positions
from sdrpn.families.qwen.vision_spec import Qwen25Vision, qwen_vision_of
from sdrpn.families.registry import family_of
from sdrpn.host.machine import read_cpu
from sdrpn.images.patches import crop_patches, picture_patches
from sdrpn.method.grids import FloatArray, cell_count
from sdrpn.method.roi import Crop, Decide, RoiDecision, RoiPolicy
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec
from sdrpn.runtime import Answer, Session
from sdrpn.workflows.graph_optimization import optimize_bundle

_CELL = 28**2
SPEC = ModelSpec(
    vision=Qwen25Vision(
        patch_size_px=14,
        width=384,
        layers=8,
        heads=6,
        mlp_width=1024,
        least_pixels=256 * _CELL,
        most_pixels=576 * _CELL,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        full_layers=(3, 7),
    ),
    llm=LlmSpec(
        vocabulary=4096,
        width=512,
        layers=12,
        heads=8,
        kv_heads=2,
        head_dim=64,
        mlp_width=1536,
        max_context=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        attention_bias=True,
        rope_sections=(8, 12, 12),
    ),
    tap_layer=6,
    rpn=RpnSpec(layers=3, scheme="q-zoom", rotary=True, outer_norm=False, gate_layers=3),
    prompt=PromptSpec(
        template="{{ messages }}",
        image_token="<|image_pad|>",
        image_token_id=4,
        eos_token_ids=(),  # answers always have their full length
    ),
)
IMAGE_WH = (640, 480)
NEW_TOKENS = 16
BEFORE = tuple(range(10, 25))
AFTER = tuple(range(30, 65))  # 15 + 391 + 35 = 441
OTHER_AFTER = tuple(range(70, 105))
BOX = Crop((150, 120, 470, 420))  # 272 tokens

# Relative to the prefill of the plain answer's LLM in the same round.
PREFILL_LIMITS = {"gate skips": 1.20, "one box": 1.85, "gate, one box": 1.95, "second question": 0.35}
TORCH_LIMITS = {"one box": 1.3, "gate, one box": 1.3}

Round = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One way a question can go.

    crops: None: plain
    gate: threshold that all scores are above, or below; None: a model without a gate
    """

    name: str
    crops: tuple[Crop, ...] | None = None
    gate: float | None = None
    second: bool = False  # asked after another question about the same picture

    @property
    def skips(self) -> bool:
        """Whether the gate ends it."""
        return self.gate == 1.0

    @property
    def roi(self) -> RoiPolicy | None:
        """For a session."""
        return None if self.crops is None else RoiPolicy(gate_threshold=-1.0 if self.gate is None else self.gate)

    @property
    def decide(self) -> Decide | None:
        """The crops, whatever the map."""
        crops = self.crops
        if crops is None:
            return None
        return lambda logits, image_wh: RoiDecision(np.empty((0, 4), np.int64), crops, None, logits)


CASES = (
    Case("plain"),
    Case("gate skips", (), gate=1.0),
    Case("no box", ()),
    Case("gate, no box", (), gate=0.0),
    Case("one box", (BOX,)),
    Case("gate, one box", (BOX,), gate=0.0),
    Case("second question", (), gate=0.0, second=True),
    Case("second, one box", (BOX,), gate=0.0, second=True),
)


def photograph(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(IMAGE_WH, Image.Resampling.BICUBIC)


class OnnxRuntimeSide:
    """Answers through the runtime. Every first question gets a picture that the session does not know."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._pictures = itertools.cycle([photograph(seed) for seed in range(3)])

    def ask(self, case: Case, picture: Image.Image | None = None) -> Answer:
        picture = picture or next(self._pictures)
        self.session.forget_image()
        if case.second:
            self._asked(case, picture, OTHER_AFTER, 1)
        return self._asked(case, picture, AFTER, NEW_TOKENS)

    def _asked(self, case: Case, picture: Image.Image, after: Sequence[int], new_tokens: int) -> Answer:
        return self.session.answer_ids(
            picture, BEFORE, after, roi=case.roi, decide=case.decide, max_new_tokens=new_tokens
        )

    def round(self, case: Case) -> Round:
        timings = self.ask(case).timings
        return {
            "prefill_s": timings.llm_prefill_s,
            "vision_s": timings.vision_s + timings.crop_vision_s,
            "decode_per_token_s": timings.decode_per_token_s,
            "total_s": timings.total_s,
        }


class OfficialSide:
    """The official structure: transformers' layers, gate and twig beside them, a second pass from the embeddings."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        import transformers
        from safetensors.torch import load_file
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer

        torch.set_num_threads(1)
        library: Any = transformers
        library.logging.set_verbosity_error()  # it does not know gate and twig
        self._torch = torch
        model = library.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            checkpoint, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
        self._model, self._llm = model, model.model.language_model
        tensors: dict[str, Any] = {}
        for path in checkpoint.glob("*.safetensors"):
            tensors |= load_file(path)

        def layers(name: str) -> list[Any]:
            found = []
            for index in range(3):
                layer = Qwen2_5_VLDecoderLayer(self._llm.config, index).eval()
                prefix = f"model.{name}.{index}."
                own = {key[len(prefix) :]: tensors[key] for key in tensors if key.startswith(prefix)}
                layer.load_state_dict(own, strict=False)  # the last twig layer has queries and keys alone
                found.append(layer)
            return found

        self._twig, self._gate = layers("twig_layers"), layers("high_res_layers")
        self._cache_name = next(
            name
            for name in ("cache", "past_key_values", "past_key_value")
            if name in inspect.signature(Qwen2_5_VLDecoderLayer.forward).parameters
        )

    def seconds(self, case: Case) -> tuple[float, tuple[int, ...]]:
        """The time of an answer, and its tokens."""
        picture, start = photograph(0), time.perf_counter()
        with self._torch.inference_mode():
            ids = self._answer(case, picture)
        return time.perf_counter() - start, ids

    def vision_seconds(self) -> float:
        """The tower alone."""
        patches, grid = self._patches(photograph(0), None)
        with self._torch.inference_mode():
            start = time.perf_counter()
            self._tower(patches, grid)
            return time.perf_counter() - start

    def _answer(self, case: Case, picture: Image.Image) -> tuple[int, ...]:
        from transformers import DynamicCache

        torch, spec = self._torch, SPEC
        hw = spec.vision.grid(IMAGE_WH).hw
        image = self._tower(*self._patches(picture, None))
        before, after = self._embedded(BEFORE), self._embedded(AFTER)
        embeds = torch.cat((before, image, after))[None]
        placed = family_of(spec).positions(spec, Layout(len(BEFORE), hw, (), len(AFTER)))
        assert placed is not None
        cache = DynamicCache()
        if case.crops is None:
            return self._generated(self._through(embeds, placed, cache, 0, 12), placed.following, cache)
        tap = self._through(embeds, placed, cache, 0, spec.tap_layer)
        if case.gate is not None:
            self._beside(self._gate, tap, placed)
        if not case.skips:
            self._scores(tap, placed)
        if case.skips or not case.crops:
            return self._generated(self._through(tap, placed, cache, spec.tap_layer, 12), placed.following, cache)
        (crop,) = case.crops
        grid = spec.vision.grid(IMAGE_WH)
        look = self._tower(*self._patches(picture, crop))
        around = family_of(spec).around_crop(spec, BEFORE, AFTER)
        embeds = torch.cat((before, image, self._embedded(around.leading), look, after))[None]
        inserted = CropTokens(grid.crop_hw(crop.box_xyxy_px))
        placed = family_of(spec).positions(spec, Layout(len(BEFORE), hw, (inserted,), len(AFTER)))
        assert placed is not None
        cache = DynamicCache()
        return self._generated(self._through(embeds, placed, cache, 0, 12), placed.following, cache)

    def _patches(self, picture: Image.Image, crop: Crop | None) -> tuple[FloatArray, tuple[int, int]]:
        vision, grid = qwen_vision_of(SPEC), SPEC.vision.grid(IMAGE_WH)
        if crop is None:
            return picture_patches(picture, vision), grid.hw
        return crop_patches(picture, crop.box_xyxy_px, vision), grid.crop_hw(crop.box_xyxy_px)

    def _tower(self, patches: FloatArray, hw: tuple[int, int]) -> Any:
        torch, vision = self._torch, qwen_vision_of(SPEC)
        frames = patches.reshape(len(patches), 3, 1, -1).repeat(vision.frames, axis=2).reshape(len(patches), -1)
        grid = torch.tensor([[1, hw[0] * vision.merge, hw[1] * vision.merge]])
        found = self._model.model.visual(torch.from_numpy(frames), grid_thw=grid)
        embeds = getattr(found, "pooler_output", found)
        assert embeds.shape == (cell_count(hw), SPEC.llm.width)
        return embeds

    def _embedded(self, ids: Sequence[int]) -> Any:
        return self._llm.embed_tokens(self._torch.tensor(list(ids)))

    def _turns(self, x: Any, rows: Any) -> Any:
        return self._llm.rotary_emb(x, self._torch.from_numpy(np.ascontiguousarray(rows))[:, None])

    def _through(self, x: Any, placed: Positions, cache: Any, first: int, last: int, rows: Any = None) -> Any:
        """Layers first..last-1, with a cache."""
        turns = self._turns(x, placed.rows if rows is None else rows)
        for layer in self._llm.layers[first:last]:
            x = layer(x, position_embeddings=turns, use_cache=True, **{self._cache_name: cache})
        return x

    def _beside(self, layers: Sequence[Any], x: Any, placed: Positions) -> Any:
        turns = self._turns(x, placed.rows)
        for layer in layers:
            x = layer(x, position_embeddings=turns)
        return x

    def _scores(self, tap: Any, placed: Positions) -> Any:
        llm = SPEC.llm
        x = self._beside(self._twig[:-1], tap, placed)
        last = self._twig[-1]
        normed = last.input_layernorm(x)
        query = last.self_attn.q_proj(normed).view(1, -1, llm.heads, llm.head_dim).transpose(1, 2)
        keys = last.self_attn.k_proj(normed).view(1, -1, llm.kv_heads, llm.head_dim).transpose(1, 2)
        cos, sin = (table[:, None] for table in self._turns(x, placed.rows))  # (1,1,S,d)
        query, keys = (part * cos + self._half_turned(part) * sin for part in (query, keys))
        keys = keys.repeat_interleave(llm.heads // llm.kv_heads, dim=1)
        return (query[:, :, -1:] @ keys.transpose(2, 3)).mean(dim=1)

    def _half_turned(self, x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return self._torch.cat((-second, first), dim=-1)

    def _generated(self, hidden: Any, following: int, cache: Any) -> tuple[int, ...]:
        """The rest of an answer, greedily."""
        ids: list[int] = []
        while True:
            logits = self._model.lm_head(self._llm.norm(hidden[:, -1:]))[0, 0]
            ids.append(int(logits.argmax()))
            if len(ids) == NEW_TOKENS:
                return tuple(ids)
            rows = np.full((3, 1), following + len(ids) - 1)
            hidden = self._through(self._embedded(ids[-1:])[None], Positions(rows, 0), cache, 0, 12)


def measured(bundle: Path, checkpoint: Path, rounds: int, with_torch: bool, backend: str) -> dict[str, Any]:
    """All cases and both sides, in turns."""
    torch_side = OfficialSide(checkpoint) if with_torch else None
    cases: dict[str, list[Round]] = {case.name: [] for case in CASES}
    with Session.open(bundle, backend=backend, threads=1) as session:
        side = OnnxRuntimeSide(session)
        if torch_side is not None:
            require_same_answers(side, torch_side)
        for number in range(rounds + 1):
            found = one_round(side, torch_side)
            if number:  # the first round warms up
                for name, figures in found.items():
                    cases[name].append(figures)
            if sys.stderr.isatty():
                print(f"\rround {number} of {rounds}", end="", file=sys.stderr)
    return {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]} for name, found in cases.items()
    }


def one_round(side: OnnxRuntimeSide, torch_side: OfficialSide | None) -> dict[str, Round]:
    """Every case once, each between two plain answers."""
    plain, *others = CASES
    before, figures = side.round(plain), {}
    for case in others:
        found, after = side.round(case), side.round(plain)
        around_s = (before["prefill_s"] + after["prefill_s"]) / 2
        figures[case.name] = {**found, "prefill_over_plain": found["prefill_s"] / around_s}
        before = after
    figures = {plain.name: {**before, "prefill_over_plain": 1.0}, **figures}
    if torch_side is not None:
        for case in CASES:
            torch_s, _ = torch_side.seconds(case)
            figures[case.name] |= {"torch_s": torch_s, "torch_over_ours": torch_s / figures[case.name]["total_s"]}
        figures["plain"]["torch_vision_s"] = torch_side.vision_seconds()
    return figures


def require_same_answers(side: OnnxRuntimeSide, torch_side: OfficialSide) -> None:
    """Both compute the same model in the same way."""
    for case in CASES:
        _, ids = torch_side.seconds(case)
        found = side.ask(case, photograph(0)).token_ids
        if found != ids:
            raise SystemExit(f"{case.name}: the sides differ: {found} and {ids}")


def lines(cases: dict[str, Round]) -> Iterator[str]:
    heads = f"{'case':17}{'prefill ms':>11}{'/ plain':>9}{'limit':>7}{'total ms':>10}"
    yield heads + f"{'torch ms':>10}{'torch / ours':>14}{'limit':>7}"
    for name, case in cases.items():
        limit, other = PREFILL_LIMITS.get(name, ""), TORCH_LIMITS.get(name, "")
        torch = f"{case['torch_s'] * 1e3:10.0f}{case['torch_over_ours']:14.2f}{other:>7}" if "torch_s" in case else ""
        prefill, ratio, total = case["prefill_s"] * 1e3, case["prefill_over_plain"], case["total_s"] * 1e3
        yield f"{name:17}{prefill:11.0f}{ratio:9.2f}{limit:>7}{total:10.0f}{torch}"
    plain = cases["plain"]
    if "torch_vision_s" in plain:
        vision, theirs = plain["vision_s"] * 1e3, plain["torch_vision_s"] * 1e3
        yield f"vision: {vision:.0f} ms, transformers' sdpa tower {theirs:.0f} ms, {theirs / vision:.2f} times as long"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--backend", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--optimized", action="store_true", help="with the graphs that `sdrpn optimize` saves")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, which other load disturbs less")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.cpu_time:  # the clock that every stage reads
        vars(time)["perf_counter"] = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "checkpoint", Path(folder) / "bundle"
        write_random_checkpoint(checkpoint, SPEC)
        export_bundle(checkpoint, bundle, ExportOptions("fp32", "fused"))
        if args.optimized:
            optimize_bundle(bundle, threads=1)
        cases = measured(bundle, checkpoint, args.rounds, not args.no_torch, args.backend)
    library = f"{args.backend} {version(args.backend)}"
    machine = f"{read_cpu().name}, {platform.system()}, {library}, 1 thread{', CPU time' * args.cpu_time}"
    if args.json:
        print(json.dumps({"format_version": 1, "machine": machine, "rounds": args.rounds, "cases": cases}, indent=2))
        return
    print(f"{machine}; medians of {args.rounds} rounds")
    for line in lines(cases):
        print(line)


if __name__ == "__main__":
    main()
