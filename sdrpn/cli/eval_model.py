"""Open what `sdrpn eval` measures: a bundle on ONNX Runtime, or a checkpoint in PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.cli.arguments import AUTO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from sdrpn.checkpoint import Checkpoint
    from sdrpn.evaluation.looks import Answered, Answerer, Look, RpnLook
    from sdrpn.evaluation.methods import Setting
    from sdrpn.evaluation.rpns import LoadedRpn
    from sdrpn.evaluation.task import Task
    from sdrpn.evaluation.torch_answerer import TorchAnswerer
    from sdrpn.method.roi import Crop, Decide, RoiDecision, RoiPolicy
    from sdrpn.method.spec import ModelSpec
    from sdrpn.runtime import Answer, Session, Timings

    Float32 = NDArray[np.float32]

__all__ = ["OpenedModel", "open_model"]


@dataclass(frozen=True)
class OpenedModel:
    """A model that answers, what its methods share, and what it is."""

    answerer: Answerer
    setting: Setting
    about: dict[str, Any]

    @property
    def thresholds(self) -> dict[str, float]:
        """By method."""
        setting = self.setting
        found = {"sdrpn": setting.rpn_look().policy.threshold}
        found |= {f"sdrpn:{name}": policy.threshold for name, policy in setting.rpn_policies.items() if name}
        if setting.attention is not None:
            found["attention-crop"] = setting.attention.policy.threshold
        return found


@contextmanager
def open_model(args: argparse.Namespace, task: Task, wanted: Sequence[str] | None) -> Iterator[OpenedModel]:
    """The model of `args`, ready for the methods that are wanted of it."""
    from sdrpn.bundle.bundle import MANIFEST_NAME

    opener = _open_bundle if (args.model / MANIFEST_NAME).is_file() else _open_checkpoint
    with opener(args, task, wanted) as model:
        yield model


def policy_of(args: argparse.Namespace, task: Task) -> RoiPolicy:
    """The task's published threshold unless another number was given."""
    from sdrpn.method.roi import RoiPolicy

    return RoiPolicy(args.threshold if isinstance(args.threshold, float) else task.threshold, args.upscale)


# A bundle ------------------------------------------------------------------------------------------------------------


@contextmanager
def _open_bundle(args: argparse.Namespace, task: Task, wanted: Sequence[str] | None) -> Iterator[OpenedModel]:
    from sdrpn.bundle.shipped import bundle_name
    from sdrpn.errors import BadInput
    from sdrpn.evaluation.methods import Setting
    from sdrpn.runtime import Session

    for option, value in (
        ("--rpn", args.rpn),
        ("--heads", args.heads),
        ("--base", args.base),
        ("--projector", args.projector),
        ("--fit", args.fit),
    ):
        if value:
            raise BadInput(f"{option} is for a checkpoint, and {args.model} is a bundle; name the checkpoint instead")
    if args.threshold == AUTO:
        raise BadInput("--threshold auto needs attention, which a bundle does not give; give a number, or a checkpoint")
    with Session.open(args.model, backend=args.backend, threads=args.threads, variant=args.variant) as session:
        about = {
            "bundle": bundle_name(args.model),
            "source_sha256": session.bundle.manifest.source.get("sha256"),
            "variant": session.variant.name,
            "backend": args.backend,
        }
        yield OpenedModel(BundleAnswerer(session), Setting(policy_of(args, task), seed=args.seed), about)


class BundleAnswerer:
    """A session as an answerer. It has no attention to show; crops that are given cost a look of the RPN."""

    def __init__(self, session: Session) -> None:
        from sdrpn.errors import BadInput
        from sdrpn.text.prompt import load_tokenizer

        tokenizer = session.bundle.manifest.tokenizer
        if tokenizer is None:
            raise BadInput(f"{session.bundle.path} has no tokenizer.json; export a checkpoint that has a tokenizer")
        self._session = session
        self._tokenizer = load_tokenizer(session.bundle.file(tokenizer))

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._session.spec

    @property
    def rpns(self) -> tuple[str, ...]:
        """Its own, if it has one."""
        return () if self.spec.rpn is None else ("",)

    @property
    def looks(self) -> frozenset[type[Any]]:
        """What needs no attention."""
        from sdrpn.evaluation.looks import GivenLook, RpnLook

        return frozenset((GivenLook, RpnLook)) if self.rpns else frozenset()

    def answer(self, picture: Image, question: str, look: Look | None, max_new_tokens: int) -> Answered:
        """Answer greedily, the prefix computed anew; or only look."""
        import time

        from sdrpn.evaluation.looks import Answered

        if max_new_tokens == 0:
            return self._look(picture, question, look)
        self._session.forget_image()
        start = time.perf_counter()
        answer = self._answer(picture, question, look, max_new_tokens)
        seconds = time.perf_counter() - start
        decision = answer.trace.decision if answer.trace is not None else None
        crops = () if decision is None else decision.crops
        return Answered(
            answer.text.strip(),
            crops,
            self._peak(picture, look, decision),
            answer.roi_token_count,
            seconds,
            answer.note,
            self._map(look, decision),
        )

    def _look(self, picture: Image, question: str, look: Look | None) -> Answered:
        """Without a second pass. What the session computes for a first token is not counted."""
        from sdrpn.evaluation.looks import Answered, GivenLook, RpnLook, given_note, window_xy_px

        if not isinstance(look, RpnLook):
            crops = look.crops if isinstance(look, GivenLook) else ()
            note = given_note(crops) if look is not None else None
            return Answered("", crops, window_xy_px(crops), self._tokens(picture, crops), 0.0, note)
        self._session.forget_image()
        decision, timings = self._decided(picture, question, look)
        seconds = timings.preprocess_s + timings.vision_s + timings.trunk_s + timings.rpn_s + timings.roi_decode_s
        peak = self._peak(picture, look, decision)
        tokens, strength = self._tokens(picture, decision.crops), self._map(look, decision)
        return Answered("", decision.crops, peak, tokens, seconds, decision.note, strength)

    def _map(self, look: Look | None, decision: RoiDecision | None) -> Float32 | None:
        from sdrpn.evaluation.looks import RpnLook, map_over_image

        return map_over_image(decision, look.policy) if decision is not None and isinstance(look, RpnLook) else None

    def _tokens(self, picture: Image, crops: Sequence[Crop]) -> int:
        grid = self.spec.vision.grid(picture.size)
        return sum(crop.token_count(grid.crop_hw(crop.box_xyxy_px)) for crop in crops)

    def _peak(self, picture: Image, look: Look | None, decision: RoiDecision | None) -> tuple[float, float] | None:
        from sdrpn.evaluation.looks import RpnLook, peak_xy_px, window_xy_px

        if decision is None:
            return None
        if isinstance(look, RpnLook):
            return peak_xy_px(decision, picture.size, self.spec)
        return window_xy_px(decision.crops)

    def decide(self, picture: Image, question: str, look: RpnLook) -> RoiDecision:
        """Where it would look."""
        return self._decided(picture, question, look)[0]

    def _decided(self, picture: Image, question: str, look: RpnLook) -> tuple[RoiDecision, Timings]:
        """The decision and what it took; no crop is encoded."""
        import dataclasses

        from sdrpn.text.prompt import build_prompt

        decider, decided = self._decider(look), []

        def decide(logits: Float32, image_wh: tuple[int, int]) -> RoiDecision:
            decided.append(decider(logits, image_wh))
            return dataclasses.replace(decided[0], crops=())

        prompt = build_prompt(self._tokenizer, self.spec.prompt, question)
        answer = self._session.answer_ids(
            picture, prompt.ids_before, prompt.ids_after, roi=None, decide=decide, max_new_tokens=1
        )
        return decided[0], answer.timings

    def _answer(self, picture: Image, question: str, look: Look | None, max_new_tokens: int) -> Answer:
        from sdrpn.text.prompt import build_prompt

        prompt = build_prompt(self._tokenizer, self.spec.prompt, question)
        decide = None if look is None else self._decider(look)
        return self._session.answer_ids(
            picture,
            prompt.ids_before,
            prompt.ids_after,
            roi=None,
            decide=decide,
            max_new_tokens=max_new_tokens,
            trace=True,
        )

    def _decider(self, look: Look) -> Decide:
        import numpy as np

        from sdrpn.evaluation.looks import GivenLook, RpnLook, given_note
        from sdrpn.method.roi import RoiDecision, decide_by_policy

        if isinstance(look, RpnLook):
            return decide_by_policy(look.policy, self.spec.vision.grid)
        assert isinstance(look, GivenLook)
        crops = look.crops

        def decide(logits: Float32, image_wh: tuple[int, int]) -> RoiDecision:
            return RoiDecision(np.zeros((0, 4), np.int64), crops, given_note(crops), logits)

        return decide


# A checkpoint --------------------------------------------------------------------------------------------------------


@contextmanager
def _open_checkpoint(args: argparse.Namespace, task: Task, wanted: Sequence[str] | None) -> Iterator[OpenedModel]:
    from sdrpn.host.libraries import importing_extra

    with importing_extra("train", "sdrpn eval of a checkpoint"):
        from sdrpn.checkpoint import open_checkpoint

    first, *others = _named_rpns(args.rpn) or [("", None)]
    with open_checkpoint(
        args.model,
        vision_tower=args.vision_tower,
        base=args.base,
        projector=args.projector,
        fit=args.fit or "pad",
        rpn=first[1],
    ) as checkpoint:
        yield _torch_model(args, task, wanted, checkpoint, others)


def _torch_model(
    args: argparse.Namespace,
    task: Task,
    wanted: Sequence[str] | None,
    checkpoint: Checkpoint,
    others: Sequence[tuple[str, Path | None]],
) -> OpenedModel:
    from sdrpn.host.libraries import importing_extra

    # Behind the first look at the checkpoint: a refusal does not wait for what takes seconds to load.
    with importing_extra("train", "sdrpn eval of a checkpoint"):
        import torch

        from sdrpn.cli.teacher import device_named, tokenizer_of
        from sdrpn.evaluation.methods import DEFAULT_METHODS
        from sdrpn.evaluation.torch_answerer import TorchAnswerer
        from sdrpn.model import model_from_checkpoint
        from sdrpn.model.dtypes import torch_dtype

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dtype = torch_dtype(args.precision)
    device = device_named(args.device)
    model = model_from_checkpoint(checkpoint, dtype).to(device)
    rpns = {name: rpn.to(device, dtype) for name, rpn in _further_rpns(args, checkpoint, others).items()}
    answerer = TorchAnswerer(model, tokenizer_of(checkpoint), rpns)
    setting = _setting(args, task, answerer, DEFAULT_METHODS if wanted is None else wanted)
    about = {
        "checkpoint": str(args.model),
        "sha256": checkpoint.digest(),
        "rpns": args.rpn,
        "heads": args.heads,
        "precision": args.precision,
        "fit": checkpoint.spec.vision.fit,
        "device": device,
        "threads": torch.get_num_threads(),
        "vicrop_layer": None if setting.vicrop is None else setting.vicrop.layer,
    }
    return OpenedModel(answerer, setting, about)


def _named_rpns(options: Sequence[str]) -> list[tuple[str, Path | None]]:
    """Names and files; the first is the model's own, a further one without a name is called as its folder."""
    from sdrpn.errors import BadInput
    from sdrpn.evaluation.methods import UNTRAINED

    named: list[tuple[str, Path | None]] = []
    for number, option in enumerate(options):
        name, equals, text = option.partition("=")
        file = Path(text if equals else option)
        if number == 0:
            named.append(("", file))
            continue
        name = name if equals else (file.parent if file.suffix else file).name
        if name in ("", UNTRAINED) or name in dict(named):
            raise BadInput(f"--rpn {option}: the name {name!r} is taken; write --rpn NAME=FILE with another one")
        named.append((name, file))
    return named


def _further_rpns(
    args: argparse.Namespace, checkpoint: Checkpoint, others: Sequence[tuple[str, Path | None]]
) -> dict[str, LoadedRpn]:
    """The named ones, and one before its first step."""
    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.evaluation.methods import UNTRAINED
    from sdrpn.evaluation.rpns import rpn_of, untrained_rpn

    rpns = {} if checkpoint.spec.rpn is None else {UNTRAINED: untrained_rpn(checkpoint)}
    for name, file in others:
        with open_checkpoint(
            args.model,
            vision_tower=args.vision_tower,
            base=args.base,
            projector=args.projector,
            fit=args.fit or "pad",
            rpn=file,
        ) as opened:
            rpns[name] = rpn_of(opened)
    return rpns


def _setting(args: argparse.Namespace, task: Task, answerer: TorchAnswerer, wanted: Sequence[str]) -> Setting:
    import dataclasses

    from sdrpn.cli.progress import progress
    from sdrpn.errors import BadInput
    from sdrpn.evaluation.looks import AttentionLook, TeacherLook, VicropLook
    from sdrpn.evaluation.methods import UNTRAINED, Setting
    from sdrpn.evaluation.survey import survey
    from sdrpn.evaluation.vicrop import PUBLISHED_LAYER_SHARE
    from sdrpn.labels.head_choice import read_heads
    from sdrpn.method.roi import RoiPolicy

    policy, layers = policy_of(args, task), answerer.spec.llm.layers
    layer = round(PUBLISHED_LAYER_SHARE * layers) if args.vicrop_layer is None else args.vicrop_layer
    if not 0 <= layer < layers:
        raise BadInput(f"--vicrop-layer is {layer}; the model has layers 0 to {layers - 1}")
    vicrop = VicropLook(layer, task.general_question)
    plain = Setting(policy, vicrop=vicrop, seed=args.seed)
    if args.heads is None:
        if args.threshold == AUTO:
            raise BadInput("--threshold auto needs grounding heads for its labels; name them with --heads")
        return plain
    heads = read_heads(args.heads)
    answerer.require_heads(heads)
    needed = {"all", "attention-crop", "teacher-crop"}.intersection(wanted)
    if not needed and args.threshold != AUTO:
        return plain  # what is not asked for costs no questions
    # An RPN before its first step has no threshold of its own to choose.
    rpns = [name for name in answerer.rpns if name != UNTRAINED] if args.threshold == AUTO else []
    with progress("survey", "questions") as advance:
        found = survey(answerer, answerer.spec.vision, task.unlabelled, heads, rpns=rpns, progress=advance)
    relative = None
    if needed - {"teacher-crop"}:
        share = args.attention_threshold
        relative = found.attention_policy(policy) if share == AUTO else RoiPolicy(-share, args.upscale)
    return dataclasses.replace(
        plain,
        attention=None if relative is None else AttentionLook(relative, heads, found.prompt_sinks),
        teacher=TeacherLook(policy, heads, found.answer_sinks),
        rpn_policies={name: found.rpn_policy(name, policy) for name in rpns},
    )
