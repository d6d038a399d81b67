"""Methods: what the second pass sees, and controls that separate good crops from more tokens. Knows no library.

A method plans, for one sample, which picture is shown and which kind of second pass follows. Only those in
`READ_TRUTH` read the true boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.evaluation.crop_pixels import base_view_pixels, blank_pixels, swapped_pixels
from sdrpn.evaluation.looks import (
    Answerer,
    AttentionLook,
    GivenLook,
    Look,
    RpnLook,
    TeacherLook,
    VicropLook,
)
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.task import Task
from sdrpn.families.registry import family_of
from sdrpn.method.grids import Box, ImageGrid
from sdrpn.method.roi import Crop, RoiPolicy
from sdrpn.method.spec import ModelSpec

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "RPN_PREFIX",
    "UNTRAINED",
    "LookPlan",
    "Setting",
    "has_gate",
    "methods_for",
    "plan_method",
    "require_methods",
]

UNTRAINED = "untrained"  # the name of an answerer's untrained RPN
TILES = 2
RPN_PREFIX = "sdrpn:"  # sdrpn:NAME is the RPN of that name
DEFAULT_METHODS = ("plain", "attention-crop", "sdrpn", "oracle-crop")


@dataclass(frozen=True)
class Setting:
    """Settings shared by all questions of a run.

    policy: for labels, and for RPNs without an entry in `rpn_policies`, by name.
    attention, teacher, vicrop: None without grounding heads, or where the answerer gives no attention.
    seed: of random crops.
    """

    policy: RoiPolicy
    attention: AttentionLook | None = None
    teacher: TeacherLook | None = None
    vicrop: VicropLook | None = None
    rpn_policies: Mapping[str, RoiPolicy] = field(default_factory=dict)
    seed: int = 0

    def rpn_look(self, rpn: str = "") -> RpnLook:
        """The look at the crops of an RPN."""
        return RpnLook(self.rpn_policies.get(rpn, self.policy), rpn)


@dataclass(frozen=True)
class LookPlan:
    """The picture to show, and the kind of second pass.

    truth: boxes in pixels of `picture`. other: the sample whose pixels the crops show instead.
    """

    picture: Image.Image
    look: Look | None
    truth: tuple[Box, ...]
    other: Sample | None = None


@dataclass(frozen=True)
class EvaluationQuestion:
    """One sample, as a method sees it."""

    index: int
    sample: Sample
    picture: Image.Image
    before: Callable[[], tuple[Sample, Image.Image]]  # the previous sample
    answerer: Answerer
    setting: Setting
    # Of this sample and the previous one, by whether it is the latter: kept for the methods that follow.
    proposed: dict[bool, tuple[Crop, ...]] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.answerer.spec

    def grid(self) -> ImageGrid:
        """The grid of cells over the picture."""
        return self.spec.vision.grid(self.picture.size)

    def plan(self, look: Look | None) -> LookPlan:
        """The plan to show the picture unchanged."""
        return LookPlan(self.picture, look, self.sample.boxes_xyxy_px)

    def crop(self, box_cells: Box) -> LookPlan:
        """The plan to crop one box of cells; no crop where it is all padding."""
        box = self.grid().box_px_from_cells(box_cells)
        return self.plan(GivenLook(() if box is None else (Crop(box),)))

    def own_crops(self) -> tuple[Crop, ...]:
        """The crops that the RPN proposes for this sample, whatever a gate says."""
        return self._proposed(False, self.sample, self.picture)

    def crops_before(self) -> tuple[Crop, ...]:
        """The crops that the RPN proposes for the previous sample."""
        return self._proposed(True, *self.before())

    def _proposed(self, before: bool, sample: Sample, picture: Image.Image) -> tuple[Crop, ...]:
        if before not in self.proposed:
            decision = self.answerer.decide(picture, sample.question, self.setting.rpn_look())
            self.proposed[before] = decision.crops
        return self.proposed[before]


def _plain(question: EvaluationQuestion) -> LookPlan:
    return question.plan(None)


def _blind(question: EvaluationQuestion) -> LookPlan:
    """The question alone: a picture of the colour that borders have, which is 0 to the model."""
    colour = family_of(question.spec).blank_colour(question.spec.vision)
    return LookPlan(Image.new("RGB", question.picture.size, colour), None, question.sample.boxes_xyxy_px)


def _sdrpn(question: EvaluationQuestion) -> LookPlan:
    return question.plan(question.setting.rpn_look())


def _always(question: EvaluationQuestion) -> LookPlan:
    look = question.setting.rpn_look()
    return question.plan(dataclasses.replace(look, policy=dataclasses.replace(look.policy, gate_threshold=-1.0)))


def _untrained_rpn(question: EvaluationQuestion) -> LookPlan:
    return question.plan(question.setting.rpn_look(UNTRAINED))


def _attention_crop(question: EvaluationQuestion) -> LookPlan:
    return question.plan(question.setting.attention)


def _teacher_crop(question: EvaluationQuestion) -> LookPlan:
    return question.plan(question.setting.teacher)


def _vicrop(question: EvaluationQuestion) -> LookPlan:
    return question.plan(question.setting.vicrop)


def _tiles(question: EvaluationQuestion) -> LookPlan:
    """The whole picture at twice the resolution."""
    width, height = question.picture.size
    edges = [(place * width // TILES, place * height // TILES) for place in range(TILES + 1)]
    crops = [
        Crop((edges[column][0], edges[row][1], edges[column + 1][0], edges[row + 1][1]))
        for row in range(TILES)
        for column in range(TILES)
    ]
    return question.plan(GivenLook(tuple(crops)))


def _centre_crop(question: EvaluationQuestion) -> LookPlan:
    """The centre of the picture, half as wide and high."""
    width, height = question.picture.size
    box = width // 4, height // 4, max(width // 4 + 1, 3 * width // 4), max(height // 4 + 1, 3 * height // 4)
    return question.plan(GivenLook((Crop(box),)))


def _random_crop(question: EvaluationQuestion) -> LookPlan:
    """A random box of cells, of the size of the true box, or a third of the grid where that is unknown."""
    rng = np.random.default_rng((question.setting.seed, question.index))
    rows, columns = question.grid().hw
    if question.sample.boxes_xyxy_px:
        x1, y1, x2, y2 = question.grid().box_cells_from_px(question.sample.boxes_xyxy_px[0])
        size = x2 - x1, y2 - y1
    else:
        size = max(1, columns // 3), max(1, rows // 3)
    shown = question.grid().box_cells_from_px((0, 0, *question.picture.size))
    x, y = (int(rng.integers(shown[axis], max(shown[axis], shown[axis + 2] - size[axis]) + 1)) for axis in (0, 1))
    return question.crop((x, y, min(columns, x + size[0]), min(rows, y + size[1])))


def _shuffled_crop(question: EvaluationQuestion) -> LookPlan:
    """The crops that the RPN proposed for the previous sample: realistic shapes in the wrong place."""
    _, picture = question.before()
    crops = question.crops_before()
    return question.plan(GivenLook(tuple(_moved(crop, picture.size, question) for crop in crops)))


def _crop_blank(question: EvaluationQuestion) -> LookPlan:
    return question.plan(GivenLook(question.own_crops(), blank_pixels(question.picture, question.spec)))


def _crop_lowres(question: EvaluationQuestion) -> LookPlan:
    return question.plan(GivenLook(question.own_crops(), base_view_pixels(question.picture, question.spec)))


def _crop_swapped(question: EvaluationQuestion) -> LookPlan:
    crops, (sample, picture) = question.own_crops(), question.before()
    if not crops:
        return question.plan(GivenLook(()))
    pixels = swapped_pixels(question.picture, crops, picture, question.crops_before())
    return dataclasses.replace(question.plan(GivenLook(crops, pixels)), other=sample)


def _moved(crop: Crop, from_wh: tuple[int, int], question: EvaluationQuestion) -> Crop:
    to_wh = question.picture.size
    x1, y1, x2, y2 = (int(edge * to_wh[axis % 2] / from_wh[axis % 2]) for axis, edge in enumerate(crop.box_xyxy_px))
    box = min(x1, to_wh[0] - 1), min(y1, to_wh[1] - 1), min(max(x2, x1 + 1), to_wh[0]), min(max(y2, y1 + 1), to_wh[1])
    return Crop(box, _kept_on(crop.keep_cells, question.grid().crop_hw(box)), crop.grid_hw)


def _kept_on(keep_cells: NDArray[np.bool_] | None, hw: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Kept cells on a grid of h x w: pictures of another shape have other ones. None: all, also where none is left."""
    if keep_cells is None or keep_cells.shape == hw:
        return keep_cells
    rows, columns = (np.arange(size) * old // size for size, old in zip(hw, keep_cells.shape, strict=True))
    kept: NDArray[np.bool_] = keep_cells[np.ix_(rows, columns)]
    return kept if kept.any() else None


def _oracle_boxes(question: EvaluationQuestion) -> tuple[Box, ...]:
    """The true boxes, extended to whole cells: the best that a map can propose."""
    grid = question.grid()
    boxes = (grid.box_px_from_cells(grid.box_cells_from_px(box)) for box in question.sample.boxes_xyxy_px)
    return tuple(box for box in boxes if box is not None)


def _oracle_crop(question: EvaluationQuestion) -> LookPlan:
    return question.plan(GivenLook(tuple(Crop(box) for box in _oracle_boxes(question))))


def _oracle_lowres(question: EvaluationQuestion) -> LookPlan:
    """The same boxes, cut from the picture as the model first sees it: as many tokens, no new pixels."""
    seen = family_of(question.spec).seen_picture(question.picture, question.spec.vision)
    left, top, right, bottom = (round(edge) for edge in question.grid().extent_px)  # borders are whole pixels
    scales = seen.width / (right - left), seen.height / (bottom - top)

    def shrunk(box: Box) -> Box:
        x1, y1, x2, y2 = (round((edge - (left, top)[axis % 2]) * scales[axis % 2]) for axis, edge in enumerate(box))
        return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)

    crops = tuple(Crop(shrunk(box)) for box in _oracle_boxes(question))
    truth = tuple(shrunk(box) for box in question.sample.boxes_xyxy_px)
    return LookPlan(seen, GivenLook(crops), truth)


@dataclass(frozen=True)
class Method:
    """A function that plans, its requirements on task, answerer and setting, and a one-line description."""

    plan: Callable[[EvaluationQuestion], LookPlan]
    about: str
    look: type[Look] | None = None  # that the answerer must support
    boxes: bool = False  # the task must have true boxes
    rpn: str | None = None  # that the answerer must have
    gate: bool = False  # the model must have one
    shares: str = field(default="")  # the field of the setting that is required


METHODS: dict[str, Method] = {
    "plain": Method(_plain, "one pass"),
    "attention-crop": Method(
        _attention_crop, "where the grounding heads of the last prompt token attend", AttentionLook, shares="attention"
    ),
    "vicrop": Method(_vicrop, "ViCrop, relative attention, as published", VicropLook, shares="vicrop"),
    "teacher-crop": Method(
        _teacher_crop, "the denoised label of the model's own answer", TeacherLook, shares="teacher"
    ),
    "sdrpn": Method(_sdrpn, "where the RPN points", RpnLook, rpn=""),
    "always": Method(_always, "where the RPN points, whatever the gate says", RpnLook, rpn="", gate=True),
    "crop-lowres": Method(_crop_lowres, "the RPN's crop, with the base view's pixels alone", GivenLook, rpn=""),
    "crop-swapped": Method(_crop_swapped, "the RPN's crop, with the pixels of another picture's", GivenLook, rpn=""),
    "crop-blank": Method(_crop_blank, "the RPN's crop, without content", GivenLook, rpn=""),
    "oracle-crop": Method(_oracle_crop, "the true boxes, in whole cells", GivenLook, boxes=True),
    "oracle-lowres": Method(_oracle_lowres, "the true boxes, cut from the base image", GivenLook, boxes=True),
    "random-crop": Method(_random_crop, "cells drawn at random", GivenLook),
    "shuffled-crop": Method(_shuffled_crop, "where the RPN pointed in another picture", GivenLook, rpn=""),
    "centre-crop": Method(_centre_crop, "the centre, half as wide and high", GivenLook),
    "tiles": Method(_tiles, "2 x 2 tiles: everything at twice the resolution", GivenLook),
    "untrained-rpn": Method(_untrained_rpn, "an RPN before its first step", RpnLook, rpn=UNTRAINED),
    "blind": Method(_blind, "a picture without content"),
}


def has_gate(spec: ModelSpec) -> bool:
    """Whether the model says itself which questions need a second look."""
    return spec.rpn is not None and spec.rpn.has_gate


def plan_method(name: str, question: EvaluationQuestion) -> LookPlan:
    """The plan of a method for a question."""
    if name.startswith(RPN_PREFIX):
        return question.plan(question.setting.rpn_look(name.removeprefix(RPN_PREFIX)))
    return METHODS[name].plan(question)


def methods_for(wanted: Sequence[str] | None, task: Task, answerer: Answerer, setting: Setting) -> tuple[str, ...]:
    """The methods of a run. None: the default ones, ("all",): all; of these, those that task and answerer support.

    "sdrpn" includes all further RPNs. Raises BadInput for a method that is named and not supported.
    """
    further = tuple(RPN_PREFIX + rpn for rpn in _named_rpns(answerer))
    if wanted is None or tuple(wanted) == ("all",):
        candidates = (*(METHODS if wanted else DEFAULT_METHODS), *further)
        return tuple(name for name in candidates if _lack(name, task, answerer, setting) is None)
    require_methods(wanted, task, answerer, setting)
    with_further = (name for method in wanted for name in ((method, *further) if method == "sdrpn" else (method,)))
    return tuple(dict.fromkeys(with_further))


def require_methods(names: Sequence[str], task: Task, answerer: Answerer, setting: Setting) -> None:
    """Raise BadInput for the first unsupported method, with what is missing."""
    if not names:
        raise BadInput(f"no method was named; expected some of {', '.join(METHODS)}")
    for name in names:
        lack = _lack(name, task, answerer, setting)
        if lack is not None:
            raise BadInput(f"the method {name} {lack.text}", options=lack.options)


def _named_rpns(answerer: Answerer) -> list[str]:
    return [name for name in answerer.rpns if name not in ("", UNTRAINED)]


@dataclass(frozen=True)
class _Lack:
    """Why a method is not supported and what to do about it, with the options for it; None where it is."""

    text: str
    options: tuple[str, ...] = ()


def _lack(name: str, task: Task, answerer: Answerer, setting: Setting) -> _Lack | None:
    """What keeps a method from being done."""
    if name.startswith(RPN_PREFIX):
        known = _named_rpns(answerer)
        missing = name.removeprefix(RPN_PREFIX) not in known
        if not missing:
            return None
        return _Lack(f"names no RPN of this run ({', '.join(known) or 'none'}); add one as NAME=FILE", ("rpn",))
    method = METHODS.get(name)
    if method is None:
        return _Lack(f"does not exist; expected some of {', '.join(METHODS)}")
    if method.look in (GivenLook, RpnLook) and method.look not in answerer.looks:
        return _Lack("needs a bundle with an RPN, and this one has none; export it with one, or leave the method out")
    if method.look is not None and method.look not in answerer.looks:
        return _Lack("needs attention maps, which a bundle does not give; name the CHECKPOINT instead of the bundle")
    if method.boxes and not task.has_boxes:
        return _Lack(f"needs true boxes, which the task {task.name} does not have; leave it out")
    if method.rpn == UNTRAINED and UNTRAINED not in answerer.rpns:
        return _Lack("needs the CHECKPOINT instead of the bundle, with an RPN that gives the sizes")
    if method.rpn is not None and method.rpn not in answerer.rpns:
        return _Lack("needs an RPN, and the model has none; leave the method out, or name one", ("rpn",))
    if method.gate and not has_gate(answerer.spec):
        return _Lack("needs a gate, and the model has none: sdrpn looks twice at every question; leave it out")
    if not method.shares or getattr(setting, method.shares) is not None:
        return None
    return _Lack("needs grounding heads (sdrpn heads finds them); leave the method out, or name them", ("heads",))
