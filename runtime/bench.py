"""Time answers with a forced number of crops, while the RPN still runs. Knows no reports.

In each round every case of every side is asked once, so that other load on the machine slows them alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.host.progress import Advance, unseen
from sdrpn.method.grids import cell_count
from sdrpn.method.policy import Roi, RoiChange
from sdrpn.method.roi import Crop, Decide, RoiDecision
from sdrpn.method.spec import ModelSpec
from sdrpn.method.usual_length import TOKENS_AFTER_IMAGE
from sdrpn.runtime.answer import Answer
from sdrpn.runtime.session import Session

__all__ = ["CASES", "BenchCase", "BenchRun", "BenchSide", "SessionSide", "bench_cases", "bench_rounds"]

CASES = ("plain", "gate-skips", "no-box", "one-box", "mask", "two-box", "second-question")
IMAGE_WH = (1344, 1008)
Ids: TypeAlias = tuple[int, ...]
_MASK_SHARE = 0.2  # of the cells
_BOX = Crop((100, 100, 600, 500), None, None)
_OTHER_BOX = Crop((700, 300, 1300, 900), None, None)
_PICTURES = 3


@dataclass(frozen=True)
class BenchCase:
    """One case of a benchmark."""

    name: str
    decide: Decide | None  # None: one pass
    second: bool = False  # asked after another question about the same image
    gate_threshold: float | None = None  # of a model with a gate, which is asked first; None: it is not

    @property
    def roi(self) -> Roi:
        """As sessions take it beside `decide`."""
        return None if self.gate_threshold is None else RoiChange(gate_threshold=self.gate_threshold)


@dataclass(frozen=True)
class BenchRun:
    """The cost of one answer: seconds by stage, and tokens."""

    stages_s: dict[str, float]
    prompt_tokens: int = 0  # including RoI tokens; 0: unknown
    new_tokens: int = 0


class BenchSide(Protocol):
    """A side of a benchmark: something that answers cases."""

    name: str

    def run(self, case: BenchCase) -> BenchRun:
        """Answer once. Every first question has an image that the previous run did not have."""
        ...


def bench_cases(spec: ModelSpec, names: Sequence[str]) -> list[BenchCase]:
    """The named cases, plain first, since the others are compared with it.

    All of them, CASES, are those that the model has: no "mask" and "two-box" where there is one box of whole cells, no
    "gate-skips" without a gate.

    Raises: BadInput for an unknown name, or one that needs an RPN or a gate if there is none
    """
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise BadInput(f"there is no case {', '.join(unknown) or '(none given)'}; expected some of {', '.join(CASES)}")
    missing = [] if spec.rpn is None else [name for name in names if name not in _cases_of(spec)]
    if missing and tuple(names) == CASES:
        names = _cases_of(spec)
    elif missing:
        raise BadInput(
            f"this bundle's model has no case {', '.join(missing)}; expected some of {', '.join(_cases_of(spec))}",
            options=("cases",),
        )
    if spec.rpn is None and set(names) != {"plain"}:
        raise BadInput(
            "this bundle has no RPN, so only the case plain can be measured; name only that",
            options=("cases plain",),
        )
    crops = {
        "gate-skips": (),
        "no-box": (),
        "one-box": (_BOX,),
        "mask": (_mask_crop(spec),),
        "two-box": (_BOX, _OTHER_BOX),
        "second-question": (),
    }
    # All scores are above 0 and below 1.
    gates = {name: 1.0 if name == "gate-skips" else 0.0 for name in crops} if _has_gate(spec) else {}
    made = {
        name: BenchCase(name, _forced(spec, found), name == "second-question", gates.get(name))
        for name, found in crops.items()
    }
    chosen = [name for name in CASES if name in names]
    return [BenchCase("plain", None) if name == "plain" else made[name] for name in chosen]


def _cases_of(spec: ModelSpec) -> tuple[str, ...]:
    """What a model with an RPN has."""
    left_out = set() if _has_gate(spec) else {"gate-skips"}
    if "upscale" not in family_of(spec).policy_parts:
        left_out |= {"mask", "two-box"}
    return tuple(name for name in CASES if name not in left_out)


def _has_gate(spec: ModelSpec) -> bool:
    return spec.rpn is not None and spec.rpn.has_gate


def bench_rounds(
    sides: Sequence[BenchSide],
    cases: Sequence[BenchCase],
    *,
    runs: int,
    warm_up: int = 1,
    advance: Advance = unseen,
) -> Iterator[tuple[str, str, BenchRun]]:
    """Measured runs as (side, case, run). The side that starts alternates from round to round."""
    total, done = (runs + warm_up) * len(sides) * len(cases), 0
    for number in range(runs + warm_up):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for case, side in itertools.product(cases, order):
            found = side.run(case)
            done += 1
            advance(done, total)
            if number >= warm_up:
                yield side.name, case.name, found


class SessionSide:
    """Answers cases through the runtime, by token ids."""

    def __init__(
        self, name: str, session: Session, new_tokens: int, image_tokens: tuple[int, int] | None = None
    ) -> None:
        self.name, self.session, self._new_tokens, self._image_tokens = name, session, new_tokens, image_tokens
        self._pictures = itertools.cycle([bench_picture(seed) for seed in range(_PICTURES)])

    def run(self, case: BenchCase) -> BenchRun:
        """See `BenchSide.run`."""
        picture = next(self._pictures)
        before, after = bench_prompt(self.session.spec)
        self.session.forget_image()
        if case.second:
            self._answer(case, picture, before, after[::-1], 1)
        return _run_from_answer(self._answer(case, picture, before, after, self._new_tokens))

    def _answer(self, case: BenchCase, picture: Image.Image, before: Ids, after: Ids, new_tokens: int) -> Answer:
        return self.session.answer_ids(
            picture,
            before,
            after,
            roi=case.roi,
            decide=case.decide,
            max_new_tokens=new_tokens,
            image_tokens=self._image_tokens,
        )


def bench_prompt(spec: ModelSpec) -> tuple[Ids, Ids]:
    """Ids before and after the image that any vocabulary has."""
    usable, tokens = max(1, spec.llm.vocabulary - 3), family_of(spec).usual_prompt_tokens
    ids = [3 + index % usable for index in range(tokens)]
    before = max(0, tokens - TOKENS_AFTER_IMAGE)
    return tuple(ids[:before]), tuple(ids[before:])


def bench_picture(seed: int) -> Image.Image:
    """Soft noise, as large as a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (63, 84, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(IMAGE_WH, Image.Resampling.BICUBIC)


def _run_from_answer(answer: Answer) -> BenchRun:
    """Stages that add up to the total, then sums of some of them and the median decode step."""
    timings = answer.timings
    stages = {
        "picture preparation": timings.preprocess_s,
        "vision": timings.vision_s,
        "trunk": timings.trunk_s,
        "gate": timings.gate_s,
        "rpn": timings.rpn_s,
        "crop choice": timings.roi_decode_s,
        "crop preparation": timings.crop_preprocess_s,
        "crop vision": timings.crop_vision_s,
        "crop trunk": timings.crop_trunk_s,
        "tail": timings.tail_prefill_s,
        "decode": sum(timings.decode_s),
        "rest": max(0.0, timings.total_s - timings.stages_s),
        "LLM prefill": timings.llm_prefill_s,
        "first token": timings.total_s - sum(timings.decode_s),
        "total": timings.total_s,
    }
    if timings.decode_s:
        stages["token"] = timings.decode_per_token_s
    return BenchRun(stages, answer.tokens.prompt + answer.tokens.roi, answer.tokens.generated)


def _mask_crop(spec: ModelSpec) -> Crop:
    box = 100, 100, 1300, 900
    hw = spec.vision.grid(IMAGE_WH).crop_hw(box)
    cells = cell_count(hw)
    keep = np.zeros(cells, bool)
    keep[np.linspace(0, cells - 1, max(1, int(_MASK_SHARE * cells))).astype(int)] = True
    return Crop(box, keep.reshape(hw), None)


def _forced(spec: ModelSpec, crops: tuple[Crop, ...]) -> Decide:
    """Run the policy as usual, then replace its crops."""
    family = family_of(spec)
    usual = family.decide(family.policy(spec), spec)

    def decide(logits: npt.NDArray[np.float32], image_wh: tuple[int, int]) -> RoiDecision:
        own = usual(logits, image_wh)
        return RoiDecision(own.boxes_cells, crops, None, own.blurred_map)

    return decide
