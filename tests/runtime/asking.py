"""What sessions are asked in tests: a picture, questions by token ids, and ways to decide on a crop."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.runtime import Answer, Session

__all__ = [
    "BEFORE",
    "NEW_TOKENS",
    "OTHER",
    "QUESTION",
    "ask",
    "buffers_for",
    "conversation",
    "no_box",
    "one_box",
    "require_same",
]


BEFORE, QUESTION, OTHER = (1, 5, 6, 7), (8, 9, 10, 11, 12), (20, 21, 22)
NEW_TOKENS = 6


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((10, 5, 60, 50)),), None, logits)


def no_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (), None, logits)


def ask(
    session: Session,
    question: tuple[int, ...] = QUESTION,
    decide: Any = one_box,
    before: tuple[int, ...] = BEFORE,
    **options: Any,
) -> Answer:
    options = {"max_new_tokens": NEW_TOKENS, "trace": True, **options}
    return session.answer_ids(picture(), before, question, roi=None, decide=decide, **options)


def conversation(session: Session) -> list[Answer]:
    """With a crop, on the same image again, without a crop, and of one token, which a decode profile fits as well."""
    return [ask(session), ask(session, OTHER), ask(session, decide=no_box), ask(session, (9,))]


def buffers_for(backend: Any, runner: Any, batch: int = 1, rows: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of one run, caches bound to both sides."""
    extents = {"batch": batch, "sequence": rows, "cache_length": 128, "images": batch}
    shapes = {
        name: tuple(extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
        for name, tensor in {**runner.inputs, **runner.outputs}.items()
    }
    feeds = {name: backend.allocate(shapes[name], tensor.dtype) for name, tensor in runner.inputs.items()}
    results = {
        name: feeds.get(name.removesuffix("_out")) or backend.allocate(shapes[name], tensor.dtype)
        for name, tensor in runner.outputs.items()
    }
    return feeds, results


def require_same(found: list[Answer], expected: list[Answer], atol: float = 1e-5) -> None:
    """Tokens, counts and logits agree."""
    for answer, other in zip(found, expected, strict=True):
        assert answer.token_ids == other.token_ids
        assert answer.tokens == other.tokens
        assert answer.trace is not None
        assert other.trace is not None
        np.testing.assert_allclose(answer.trace.step_logits, other.trace.step_logits, atol=atol)
