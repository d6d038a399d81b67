"""Open the model that an evaluation measures: a bundle on ONNX Runtime, or a checkpoint in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdrpn.errors import BadInput
from sdrpn.families.family import Resize
from sdrpn.families.look_settings import LookSettings
from sdrpn.families.registry import family_of, fit_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress
from sdrpn.method.policy import OWN, RoiChange
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.teacher import ModelPrecision, require_device
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.evaluation.looks import Answerer
    from sdrpn.evaluation.methods import Setting
    from sdrpn.evaluation.rpns import LoadedRpn
    from sdrpn.evaluation.task import Task
    from sdrpn.evaluation.torch_answerer import TorchAnswerer
    from sdrpn.method.policy import ModelPolicy
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.method.spec import ModelSpec

__all__ = ["BundleModel", "CheckpointModel", "LookChoice", "OpenedModel", "model_at", "open_model"]

AUTO: Literal["auto"] = "auto"
Threshold = float | Literal["auto"] | None
_EXTRA = ("train", "sdrpn eval of a checkpoint")


@dataclass(frozen=True)
class LookChoice(CheckedFields):
    """How a model looks a second time.

    threshold: of the RoI map; "auto": chosen for every RPN by labels from the model's own attention; None: that of each
        RPN's training or export, else the task's published one
    attention_threshold: share of the strongest cell's attention above which a cell counts; "auto": as above
    heads: grounding heads, as for labelling; None: methods that need attention are not used
    upscale: of `sdrpn.method.roi.RoiPolicy`; None: the model's own
    vicrop_layer: layer of ViCrop's attention; None: the published one, at 14/32 of the depth
    seed: of all random choices
    gate_threshold: of a bundle with a gate; None: its own, or the task's published one
    preset, image_tokens, resize: see `sdrpn.families.look_settings.LookSettings`; for a bundle
    """

    threshold: Threshold = None
    attention_threshold: float | Literal["auto"] = AUTO
    heads: str | None = None
    upscale: Literal["mask", "bbox"] | None = None
    vicrop_layer: int | None = None
    seed: int = 0
    gate_threshold: float | None = None
    preset: str | None = None
    image_tokens: tuple[int, int] | None = None
    resize: Resize | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}; expected a whole number of at least 0", options=("seed",))


@dataclass(frozen=True)
class BundleModel(CheckedFields):
    """A bundle, and the backend that runs it; see `sdrpn.Session.open`."""

    path: Path
    backend: str = "onnxruntime"
    variant: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class CheckpointModel(CheckedFields):
    """A checkpoint in PyTorch.

    rpns: "FILE" or "NAME=FILE"; the first is the model's own; further ones without a name get their folder's name
    """

    parts: CheckpointParts
    rpns: tuple[str, ...] = ()
    precision: ModelPrecision = "fp32"
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class OpenedModel:
    """A model that answers questions, what its methods share, and its description."""

    answerer: Answerer
    setting: Setting
    about: dict[str, Any]

    @property
    def gate_threshold(self) -> float | None:
        """The threshold that the model's gate has in this run; None for a model without a gate."""
        from sdrpn.evaluation.methods import has_gate

        spec, own = self.answerer.spec, self.setting.rpn_look().policy.gate_threshold
        if not has_gate(spec):
            return None
        return family_of(spec).policy(spec).gate_threshold if own is None else own

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds of the methods."""
        setting, gate = self.setting, self.gate_threshold
        found = {"sdrpn": setting.rpn_look().policy.threshold}
        found |= {} if gate is None else {"gate": gate}
        found |= {f"sdrpn:{name}": policy.threshold for name, policy in setting.rpn_policies.items() if name}
        if setting.attention is not None:
            found["attention-crop"] = setting.attention.policy.threshold
        return found


def model_at(
    folder: Path,
    *,
    rpns: Sequence[str] = (),
    vision_tower: Path | str | None = None,
    base: Path | str | None = None,
    projector: Path | str | None = None,
    fit: Literal["pad", "crop"] | None = None,
    precision: ModelPrecision | None = None,
    device: str | None = None,
    backend: str | None = None,
    variant: str | None = None,
    threads: int | None = None,
) -> BundleModel | CheckpointModel:
    """The bundle or the checkpoint in a folder. Raises BadInput for options of the one with the other."""
    from sdrpn.bundle.bundle import MANIFEST_NAME

    if (folder / MANIFEST_NAME).is_file():
        parts = {"rpn": rpns, "vision_tower": vision_tower, "base": base, "projector": projector, "fit": fit}
        _require_none({**parts, "precision": precision, "device": device}, folder, "a checkpoint", "a bundle")
        return BundleModel(folder, backend or "onnxruntime", variant, threads)
    if not folder.exists():
        raise BadInput(f"{folder} does not exist; expected the folder of a bundle or of a checkpoint")
    if folder.is_dir():
        if not any(folder.iterdir()):
            raise BadInput(f"{folder} is empty; expected the folder of a bundle or of a checkpoint")
        _require_none({"backend": backend, "variant": variant}, folder, "a bundle", "a checkpoint")
    parts_of = CheckpointParts(folder, vision_tower, base=base, projector=projector, fit=fit or "pad")
    return CheckpointModel(parts_of, tuple(rpns), precision or "fp32", device or "cpu", threads)


def _require_none(options: Mapping[str, object], folder: Path, wanted: str, found: str) -> None:
    """Raise BadInput for the first option that is given, which is for the other kind of model."""
    for name in (name for name, value in options.items() if value):
        raise BadInput(
            f"{name} is for {wanted}, and {folder} is {found}; leave it out, or name {wanted} instead", options=(name,)
        )


@contextmanager
def open_model(
    model: BundleModel | CheckpointModel,
    task: Task,
    wanted: Sequence[str] | None,
    look: LookChoice,
    progress: ShowProgress,
) -> Iterator[OpenedModel]:
    """The model, ready for these methods (None: the default ones).

    Raises: BadInput for methods that it does not support; BadBundle or BadCheckpoint; MissingDependency
    """
    if isinstance(model, BundleModel):
        with _open_bundle(model, task, look) as opened:
            yield opened
    else:
        with _open_checkpoint(model, task, wanted, look, progress) as opened:
            yield opened


def _policy(task: Task, look: LookChoice, own: ModelPolicy, spec: ModelSpec) -> RoiPolicy:
    """The model's own policy with the given changes; the official policy gets the task's published thresholds."""
    published = _published(task, spec) if own.origin == "official" else OWN
    threshold = look.threshold if isinstance(look.threshold, float) else published.threshold
    gate = published.gate_threshold if look.gate_threshold is None else look.gate_threshold
    return RoiChange(threshold, look.upscale, gate_threshold=gate).applied_to(own.roi)


def _published(task: Task, spec: ModelSpec) -> RoiChange:
    """The thresholds that were published for a task and models of this kind."""
    family = family_of(spec)
    if "upscale" in family.policy_parts:  # SD-RPN's own evaluation, which has no presets
        return RoiChange(task.threshold)
    if task.preset is None:
        return OWN
    official = family.preset(spec, task.preset)
    return RoiChange(official.threshold, gate_threshold=official.gate_threshold)


# A bundle ------------------------------------------------------------------------------------------------------------


@contextmanager
def _open_bundle(model: BundleModel, task: Task, look: LookChoice) -> Iterator[OpenedModel]:
    from sdrpn.bundle.shipped import bundle_name
    from sdrpn.evaluation.methods import Setting
    from sdrpn.runtime import Session
    from sdrpn.workflows.bundle_answerer import BundleAnswerer

    attention = None if look.attention_threshold == AUTO else look.attention_threshold
    for name, value in (
        ("heads", look.heads),
        ("vicrop_layer", look.vicrop_layer),
        ("attention_threshold", attention),
    ):
        if value is not None:
            raise BadInput(
                f"{name} is {value}, which is for the attention of a checkpoint, and {model.path} is a bundle; leave "
                "it out, or name the checkpoint instead",
                options=(name,),
            )
    if look.threshold == AUTO:
        raise BadInput(
            "an automatic threshold needs attention, which a bundle does not give; give a number, or a checkpoint",
            options=("threshold",),
        )
    with Session.open(model.path, backend=model.backend, threads=model.threads, variant=model.variant) as session:
        about = {
            "bundle": bundle_name(model.path),
            "source_sha256": session.bundle.manifest.source.get("sha256"),
            "variant": session.variant.name,
            "backend": model.backend,
        }
        settings = _settings(look, session.spec)
        about |= (
            {"image_tokens": settings.image_tokens, "resize": settings.resize} if settings != LookSettings() else {}
        )
        policy = _policy(task, look, session.bundle.manifest.own_policy, session.spec)
        if isinstance(settings.roi, RoiChange):
            policy = settings.roi.applied_to(policy)
        yield OpenedModel(BundleAnswerer(session, settings), Setting(policy, seed=look.seed), about)


def _settings(look: LookChoice, spec: ModelSpec) -> LookSettings:
    """What was asked for, for this model. Raises BadInput for what it cannot use."""
    threshold = look.threshold if isinstance(look.threshold, float) else None
    change = RoiChange(threshold, look.upscale, gate_threshold=look.gate_threshold)
    return LookSettings(change, look.preset, look.image_tokens, look.resize).settled(spec)


# A checkpoint --------------------------------------------------------------------------------------------------------


@contextmanager
def _open_checkpoint(
    model: CheckpointModel, task: Task, wanted: Sequence[str] | None, look: LookChoice, progress: ShowProgress
) -> Iterator[OpenedModel]:
    with importing_extra(*_EXTRA):
        import sdrpn.checkpoint  # noqa: F401

    for name in ("gate_threshold", "preset", "image_tokens", "resize"):
        if getattr(look, name) is not None:
            what = name.replace("_", " ")
            raise BadInput(
                f"{what} is for a bundle, and {model.parts.path} is a checkpoint; export it", options=(name,)
            )
    first, *others = _named_rpns(model.rpns) or [("", None)]
    with (
        dataclasses.replace(model.parts, rpn=first[1]).open() as checkpoint,
        torch_threads(model.threads, checkpoint.spec),
    ):
        yield _torch_model(model, task, wanted, look, checkpoint, others, progress)


def _torch_model(
    model: CheckpointModel,
    task: Task,
    wanted: Sequence[str] | None,
    look: LookChoice,
    checkpoint: Checkpoint,
    others: Sequence[tuple[str, Path | None]],
    progress: ShowProgress,
) -> OpenedModel:
    # After the checkpoint's configs were read, so that errors come before slow imports.
    with importing_extra(*_EXTRA):
        import torch

        from sdrpn.checkpoint.tokenizer import tokenizer_of
        from sdrpn.evaluation.methods import DEFAULT_METHODS
        from sdrpn.evaluation.torch_answerer import TorchAnswerer
        from sdrpn.model import model_from_checkpoint
        from sdrpn.model.dtypes import torch_dtype

    device, dtype = require_device(model.device), torch_dtype(model.precision)
    loaded = model_from_checkpoint(checkpoint, dtype).to(device)
    rpns = {name: rpn.to(device, dtype) for name, rpn in _further_rpns(model, checkpoint, others).items()}
    answerer = TorchAnswerer(loaded, tokenizer_of(checkpoint), rpns)
    policies = {"": _policy(task, look, checkpoint.policy, checkpoint.spec)}
    policies |= {
        name: _policy(task, look, rpn.policy, checkpoint.spec) for name, rpn in rpns.items() if rpn.policy is not None
    }
    setting = _setting(task, look, policies, answerer, DEFAULT_METHODS if wanted is None else wanted, progress)
    about = {
        "checkpoint": str(model.parts.path),
        "sha256": checkpoint.digest(),
        "rpns": list(model.rpns),
        "heads": look.heads,
        "precision": model.precision,
        "fit": fit_of(checkpoint.spec),
        "device": device.partition(":")[0],  # processes of one run have a GPU each
        "threads": torch.get_num_threads(),
        "vicrop_layer": None if setting.vicrop is None else setting.vicrop.layer,
    }
    return OpenedModel(answerer, setting, about)


def _named_rpns(rpns: Sequence[str]) -> list[tuple[str, Path | None]]:
    """Names and files of the RPNs; the first has no name."""
    from sdrpn.evaluation.methods import UNTRAINED

    named: list[tuple[str, Path | None]] = []
    for number, option in enumerate(rpns):
        name, equals, text = option.partition("=")
        file = Path(text if equals else option)
        if number == 0:
            named.append(("", file))
            continue
        name = name if equals else (file.parent if file.suffix else file).name
        if name in ("", UNTRAINED) or name in dict(named):
            raise BadInput(
                f"the RPN {option}: the name {name!r} is taken; write NAME=FILE with another name", options=("rpn",)
            )
        named.append((name, file))
    return named


def _further_rpns(
    model: CheckpointModel, checkpoint: Checkpoint, others: Sequence[tuple[str, Path | None]]
) -> dict[str, LoadedRpn]:
    """The further RPNs by name, and an untrained one."""
    from sdrpn.evaluation.methods import UNTRAINED
    from sdrpn.evaluation.rpns import rpn_of, untrained_rpn

    rpns = {} if checkpoint.spec.rpn is None else {UNTRAINED: untrained_rpn(checkpoint)}
    for name, file in others:
        with dataclasses.replace(model.parts, rpn=file).open() as opened:
            rpns[name] = rpn_of(opened)
    return rpns


def _setting(
    task: Task,
    look: LookChoice,
    policies: Mapping[str, RoiPolicy],
    answerer: TorchAnswerer,
    wanted: Sequence[str],
    progress: ShowProgress,
) -> Setting:
    """`policies`: by the names of RPNs; that of the model's own is "", and serves those that have none."""
    from sdrpn.evaluation.looks import AttentionLook, TeacherLook, VicropLook
    from sdrpn.evaluation.methods import UNTRAINED, Setting
    from sdrpn.evaluation.survey import survey
    from sdrpn.evaluation.vicrop import PUBLISHED_LAYER_SHARE
    from sdrpn.labels.head_choice import read_heads, require_heads_of

    policy, layers = policies[""], answerer.spec.llm.layers
    layer = round(PUBLISHED_LAYER_SHARE * layers) if look.vicrop_layer is None else look.vicrop_layer
    if not 0 <= layer < layers:
        raise BadInput(
            f"ViCrop's layer is {layer}; the model has layers 0 to {layers - 1}: name one", options=("vicrop_layer",)
        )
    plain = Setting(policy, vicrop=VicropLook(layer, task.general_question), rpn_policies=policies, seed=look.seed)
    if look.heads is None:
        if look.threshold == AUTO:
            raise BadInput("an automatic threshold needs grounding heads for its labels; name them", options=("heads",))
        return plain
    heads = read_heads(look.heads)
    require_heads_of(answerer.spec, heads)
    answerer.require_heads(heads)
    needed = {"all", "attention-crop", "teacher-crop"}.intersection(wanted)
    if not needed and look.threshold != AUTO:
        return plain  # no questions are spent on unused methods
    # No threshold is chosen for an untrained RPN.
    rpns = [name for name in answerer.rpns if name != UNTRAINED] if look.threshold == AUTO else []
    with progress("survey", "questions") as advance:
        found = survey(answerer, answerer.spec.vision, task.unlabelled, heads, rpns=rpns, progress=advance)
    relative = None
    if needed - {"teacher-crop"}:
        share = look.attention_threshold
        relative = found.attention_policy(policy) if share == AUTO else dataclasses.replace(policy, threshold=-share)
    return dataclasses.replace(
        plain,
        attention=None if relative is None else AttentionLook(relative, heads, found.prompt_sinks),
        teacher=TeacherLook(policy, heads, found.answer_sinks),
        rpn_policies={**policies, **{name: found.rpn_policy(name, policies.get(name, policy)) for name in rpns}},
    )
