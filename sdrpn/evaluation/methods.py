"""Methods: what is looked at a second time, and the controls that tell a good place from more tokens. Knows no library.

A method plans, for one sample, which picture is shown and how the answerer looks. Only those in `READ_TRUTH` read where
the truth lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sdrpn.errors import BadInput
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
from sdrpn.images.image import base_picture
from sdrpn.method.grids import Box, ImageGrid
from sdrpn.method.roi import Crop, RoiPolicy
from sdrpn.method.spec import ModelSpec

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "RPN_PREFIX",
    "UNTRAINED",
    "Plan",
    "Setting",
    "methods_for",
    "plan_method",
    "require_methods",
]

UNTRAINED = "untrained"  # the name under which an answerer has the RPN before its first step
TILES = 2
RPN_PREFIX = "sdrpn:"  # sdrpn:NAME is the RPN of that name
DEFAULT_METHODS = ("plain", "attention-crop", "sdrpn", "oracle-crop")


@dataclass(frozen=True)
class Setting:
    """What all questions of a run share.

    policy: for labels, and for RPNs without one of their own in `rpn_policies`, by name.
    attention, teacher, vicrop: None where there are no grounding heads, or the answerer shows no attention.
    seed: of what is drawn.
    """

    policy: RoiPolicy
    attention: AttentionLook | None = None
    teacher: TeacherLook | None = None
    vicrop: VicropLook | None = None
    rpn_policies: Mapping[str, RoiPolicy] = field(default_factory=dict)
    seed: int = 0

    def rpn_look(self, rpn: str = "") -> RpnLook:
        """Look where an RPN says."""
        return RpnLook(self.rpn_policies.get(rpn, self.policy), rpn)


@dataclass(frozen=True)
class Plan:
    """What is shown, and how it is looked at again. truth: boxes in pixels of `picture`."""

    picture: Image.Image
    look: Look | None
    truth: tuple[Box, ...]


@dataclass(frozen=True)
class Question:
    """One sample on its way to a method."""

    index: int
    sample: Sample
    picture: Image.Image
    before: Callable[[], tuple[Sample, Image.Image]]  # the sample before it
    answerer: Answerer
    setting: Setting

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.answerer.spec

    def grid(self) -> ImageGrid:
        """Cells over the picture."""
        return self.spec.vision.grid(self.picture.size)

    def plan(self, look: Look | None) -> Plan:
        """Show the picture as it is."""
        return Plan(self.picture, look, self.sample.boxes_xyxy_px)

    def crop(self, box_cells: Box) -> Plan:
        """Show one box of cells again; nothing where it is all padding."""
        box = self.grid().box_px_from_cells(box_cells)
        return self.plan(GivenLook(() if box is None else (Crop(box),)))


def _plain(question: Question) -> Plan:
    return question.plan(None)


def _blind(question: Question) -> Plan:
    """The question alone: a picture of the colour that borders have, which is 0 to the model."""
    colour = question.spec.vision.pad_colour
    return Plan(Image.new("RGB", question.picture.size, colour), None, question.sample.boxes_xyxy_px)


def _sdrpn(question: Question) -> Plan:
    return question.plan(question.setting.rpn_look())


def _untrained_rpn(question: Question) -> Plan:
    return question.plan(question.setting.rpn_look(UNTRAINED))


def _attention_crop(question: Question) -> Plan:
    return question.plan(question.setting.attention)


def _teacher_crop(question: Question) -> Plan:
    return question.plan(question.setting.teacher)


def _vicrop(question: Question) -> Plan:
    return question.plan(question.setting.vicrop)


def _tiles(question: Question) -> Plan:
    """Everything, at twice the resolution."""
    width, height = question.picture.size
    edges = [(place * width // TILES, place * height // TILES) for place in range(TILES + 1)]
    crops = [
        Crop((edges[column][0], edges[row][1], edges[column + 1][0], edges[row + 1][1]))
        for row in range(TILES)
        for column in range(TILES)
    ]
    return question.plan(GivenLook(tuple(crops)))


def _centre_crop(question: Question) -> Plan:
    """The middle of the picture, half as wide and high."""
    width, height = question.picture.size
    box = width // 4, height // 4, max(width // 4 + 1, 3 * width // 4), max(height // 4 + 1, 3 * height // 4)
    return question.plan(GivenLook((Crop(box),)))


def _random_crop(question: Question) -> Plan:
    """Cells drawn anywhere, as many a side as the truth has, or a third of the grid where it is not known."""
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


def _shuffled_crop(question: Question) -> Plan:
    """What the RPN asked for in the sample before: as good a shape, in the wrong place."""
    sample, picture = question.before()
    decision = question.answerer.decide(picture, sample.question, question.setting.rpn_look())
    return question.plan(GivenLook(tuple(_moved(crop, picture.size, question.picture.size) for crop in decision.crops)))


def _moved(crop: Crop, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> Crop:
    x1, y1, x2, y2 = (int(edge * to_wh[axis % 2] / from_wh[axis % 2]) for axis, edge in enumerate(crop.box_xyxy_px))
    box = min(x1, to_wh[0] - 1), min(y1, to_wh[1] - 1), min(max(x2, x1 + 1), to_wh[0]), min(max(y2, y1 + 1), to_wh[1])
    return Crop(box, crop.keep_cells, crop.grid_hw)


def _oracle_boxes(question: Question) -> tuple[Box, ...]:
    """The true boxes, grown to whole cells: the best that a map can ask for."""
    grid = question.grid()
    boxes = (grid.box_px_from_cells(grid.box_cells_from_px(box)) for box in question.sample.boxes_xyxy_px)
    return tuple(box for box in boxes if box is not None)


def _oracle_crop(question: Question) -> Plan:
    return question.plan(GivenLook(tuple(Crop(box) for box in _oracle_boxes(question))))


def _oracle_lowres(question: Question) -> Plan:
    """The same boxes, cut from the picture as the model first sees it: as many tokens, no new pixels."""
    vision = question.spec.vision
    width, height = question.picture.size
    side = max(width, height)
    offset_xy = (side - width) // 2, (side - height) // 2  # where the picture lies in its square

    def shrunk(box: Box) -> Box:
        x1, y1, x2, y2 = (
            round((edge + offset_xy[axis % 2]) * vision.image_size_px / side) for axis, edge in enumerate(box)
        )
        return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)

    crops = tuple(Crop(shrunk(box)) for box in _oracle_boxes(question))
    truth = tuple(shrunk(box) for box in question.sample.boxes_xyxy_px)
    return Plan(base_picture(question.picture, vision), GivenLook(crops), truth)


@dataclass(frozen=True)
class Method:
    """A way to plan; what it needs of task, answerer and setting; and what it is, in a line."""

    plan: Callable[[Question], Plan]
    about: str
    look: type[Look] | None = None  # that the answerer has to be able to do
    boxes: bool = False  # the task has to say what questions are about
    rpn: str | None = None  # the answerer has to have
    shares: str = field(default="")  # the entry of the setting that must be there


METHODS: dict[str, Method] = {
    "plain": Method(_plain, "one look: plain LLaVA"),
    "attention-crop": Method(
        _attention_crop, "where the last prompt token's grounding heads look", AttentionLook, shares="attention"
    ),
    "vicrop": Method(_vicrop, "ViCrop, relative attention, as published", VicropLook, shares="vicrop"),
    "teacher-crop": Method(
        _teacher_crop, "the denoised label of the model's own answer", TeacherLook, shares="teacher"
    ),
    "sdrpn": Method(_sdrpn, "where the RPN looks", RpnLook, rpn=""),
    "oracle-crop": Method(_oracle_crop, "the true boxes, in whole cells", GivenLook, boxes=True),
    "oracle-lowres": Method(_oracle_lowres, "the true boxes, cut from the base image", GivenLook, boxes=True),
    "random-crop": Method(_random_crop, "cells drawn at random", GivenLook),
    "shuffled-crop": Method(_shuffled_crop, "where the RPN looked in another picture", GivenLook, rpn=""),
    "centre-crop": Method(_centre_crop, "the middle, half as wide and high", GivenLook),
    "tiles": Method(_tiles, "2 x 2 tiles: everything at twice the resolution", GivenLook),
    "untrained-rpn": Method(_untrained_rpn, "an RPN before its first step", RpnLook, rpn=UNTRAINED),
    "blind": Method(_blind, "a picture without content"),
}


def plan_method(name: str, question: Question) -> Plan:
    """What a method does for a question."""
    if name.startswith(RPN_PREFIX):
        return question.plan(question.setting.rpn_look(name.removeprefix(RPN_PREFIX)))
    return METHODS[name].plan(question)


def methods_for(wanted: Sequence[str] | None, task: Task, answerer: Answerer, setting: Setting) -> tuple[str, ...]:
    """The methods of a run. None: the usual ones, ("all",): all; of these, what task and answerer can do.

    Further RPNs come along wherever "sdrpn" does. Raises BadInput for one that is named and cannot be done.
    """
    further = tuple(RPN_PREFIX + rpn for rpn in _named_rpns(answerer))
    if wanted is None or tuple(wanted) == ("all",):
        candidates = (*(METHODS if wanted else DEFAULT_METHODS), *further)
        return tuple(name for name in candidates if _lack(name, task, answerer, setting) is None)
    require_methods(wanted, task, answerer, setting)
    with_further = (name for one in wanted for name in ((one, *further) if one == "sdrpn" else (one,)))
    return tuple(dict.fromkeys(with_further))


def require_methods(names: Sequence[str], task: Task, answerer: Answerer, setting: Setting) -> None:
    """Raise BadInput for the first method that cannot be done, with what it lacks."""
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
    """Why a method cannot be done and what to do about it, and the arguments that would."""

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
        return _Lack("needs attention maps, which a bundle does not give; name the CHECKPOINT in place of the bundle")
    if method.boxes and not task.has_boxes:
        return _Lack(f"needs to know what questions are about, and the task {task.name} does not say; leave it out")
    if method.rpn == UNTRAINED and UNTRAINED not in answerer.rpns:
        return _Lack("needs the CHECKPOINT in place of the bundle, with an RPN to tell the sizes from")
    if method.rpn is not None and method.rpn not in answerer.rpns:
        return _Lack("needs an RPN, and the model has none; leave the method out, or name one", ("rpn",))
    if not method.shares or getattr(setting, method.shares) is not None:
        return None
    return _Lack("needs grounding heads (sdrpn heads finds them); leave the method out, or name them", ("heads",))
