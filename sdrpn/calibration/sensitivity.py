"""Measure the error of rounding one part of a model: RoI map, boxes, answers. PyTorch; knows no formats.

The caller defines how weights are rounded: a choice is a function from a matrix to the rounded matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from sdrpn.compare.overlap import overlap
from sdrpn.host.progress import Advance, unseen
from sdrpn.method.roi import RoiPolicy, roi_map
from sdrpn.model.base import SdRpnModel
from sdrpn.model.reference import ReferenceAnswer, reference_answer
from sdrpn.text.prompt import Prompt

__all__ = ["ALL", "Asked", "Cost", "Rounding", "measure_costs", "parts_of"]

# matrix (N,K) -> (N,K), rounded
Rounding = Callable[[NDArray[Any]], NDArray[np.float32]]
ALL = "all layers"  # the name for all parts rounded together


@dataclass(frozen=True)
class Asked:
    """One question about one picture, and its RoI policy."""

    image: Image.Image
    prompt: Prompt
    roi: RoiPolicy | None
    max_new_tokens: int


@dataclass(frozen=True)
class Cost:
    """One part under one choice, relative to the original model; means over the questions. None: no RPN."""

    part: str
    choice: str
    weights: int  # number of rounded weights
    roi_cosine: float | None
    roi_cosine_min: float | None
    box_iou: float | None
    same_decision: float | None  # share: both crop, or neither does
    same_answer: float  # share: token for token


def parts_of(model: SdRpnModel) -> dict[str, list[nn.Linear]]:
    """The parts that are rounded or kept as a unit, by the names used in exports, and their matrices."""
    layers = [*model.trunk.layers, *model.tail.layers]
    parts: dict[str, list[nn.Linear]] = {"vision": _matrices(model.vision)}
    parts |= {f"layers.{number}": _matrices(layer) for number, layer in enumerate(layers)}
    if model.rpn is not None:
        # As exports keep or round them: the RPN with its gate.
        parts["rpn"] = [*_matrices(model.rpn), *(_gate_matrices(model) if model.gate is not None else [])]
    return parts | {"lm_head": [model.tail.head]}


def measure_costs(
    model: SdRpnModel,
    questions: Sequence[Asked],
    choices: Mapping[str, Rounding],
    parts: Sequence[str] | None = None,
    *,
    together: Sequence[str] = (),
    advance: Advance = unseen,
) -> Iterator[Cost]:
    """Measure every part under every choice, and finally the parts `together` at once.

    Args:
        parts: names from `parts_of`; None: all
        advance: called with (answers done, answers in all)
    """
    matrices = parts_of(model)
    named = {name: matrices[name] for name in (matrices if parts is None else parts)}
    if together:
        named[ALL] = [matrix for name in together for matrix in matrices[name]]
    total, done = len(questions) * (1 + len(named) * len(choices)), 0

    def answers() -> list[ReferenceAnswer]:
        nonlocal done
        given = []
        for question in questions:
            given.append(_answer(model, question))
            done += 1
            advance(done, total)
        return given

    exact = answers()
    for part, own in named.items():
        for choice, rounding in choices.items():
            with _rounded(own, rounding):
                found = answers()
            yield _cost(part, choice, sum(matrix.weight.numel() for matrix in own), found, exact)


def _answer(model: SdRpnModel, question: Asked) -> ReferenceAnswer:
    return reference_answer(
        model,
        question.image,
        question.prompt.ids_before,
        question.prompt.ids_after,
        roi=question.roi,
        max_new_tokens=question.max_new_tokens,
        stop_ids=model.spec.prompt.eos_token_ids,
    )


@contextmanager
def _rounded(matrices: Sequence[nn.Linear], rounding: Rounding) -> Iterator[None]:
    """Inside the block, these matrices have rounded weights."""
    exact = [matrix.weight.data for matrix in matrices]
    try:
        for matrix, weight in zip(matrices, exact, strict=True):
            rounded = torch.from_numpy(rounding(weight.float().cpu().numpy()))
            matrix.weight.data = rounded.to(weight.device, weight.dtype)
        yield
    finally:
        for matrix, weight in zip(matrices, exact, strict=True):
            matrix.weight.data = weight


def _cost(
    part: str, choice: str, weights: int, found: Sequence[ReferenceAnswer], exact: Sequence[ReferenceAnswer]
) -> Cost:
    pairs = list(zip(found, exact, strict=True))
    same_answer = float(np.mean([rounded.token_ids == original.token_ids for rounded, original in pairs]))
    looked = [pair for pair in pairs if all(answer.roi_logits is not None for answer in pair)]
    if not looked:
        return Cost(part, choice, weights, None, None, None, None, same_answer)
    cosines = [_cosine(rounded, original) for rounded, original in looked]
    boxes = [[[crop.box_xyxy_px for crop in _crops(side)] for side in pair] for pair in looked]
    return Cost(
        part=part,
        choice=choice,
        weights=weights,
        roi_cosine=float(np.mean(cosines)),
        roi_cosine_min=min(cosines),
        box_iou=float(np.mean([overlap(*pair) for pair in boxes])),
        same_decision=float(np.mean([bool(rounded) == bool(original) for rounded, original in boxes])),
        same_answer=same_answer,
    )


def _crops(answer: ReferenceAnswer) -> Sequence[Any]:
    return answer.decision.crops if answer.decision is not None else ()


def _cosine(found: ReferenceAnswer, exact: ReferenceAnswer) -> float:
    assert found.roi_logits is not None
    assert exact.roi_logits is not None
    a, b = (roi_map(logits).astype(np.float64).ravel() for logits in (found.roi_logits, exact.roi_logits))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _gate_matrices(model: SdRpnModel) -> list[nn.Linear]:
    """The gate's layers; its head is one row, which is never rounded."""
    assert model.gate is not None
    return _matrices(model.gate.layers)


def _matrices(module: nn.Module) -> list[nn.Linear]:
    return [child for child in module.modules() if isinstance(child, nn.Linear)]
