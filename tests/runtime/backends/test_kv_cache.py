"""Answers with keys and values in 8 bits, against those without on the same question; what the caches take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.tolerances import tolerances_of
from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.runtime import Answer, Session
from tests.pictures import photo

BEFORE, QUESTION = (1, 5, 6, 7), (8, 9, 10, 11, 12)


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((10, 5, 60, 50), None, None),), None, logits)


def ask(session: Session) -> Answer:
    return session.answer_ids(photo(), BEFORE, QUESTION, roi=None, decide=one_box, max_new_tokens=6, trace=True)


def traced(answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """(G*G,) of the RoI map, and the logits of every step."""
    assert answer.trace is not None
    assert answer.trace.roi_logits is not None
    return 1 / (1 + np.exp(-answer.trace.roi_logits.ravel())), answer.trace.step_logits


def cache_bytes(session: Session, graph: str) -> int:
    buffers = session._decoder.slots.caches[graph].buffers.values()
    return sum(int(np.prod(buffer.shape)) * buffer.dtype.itemsize for buffer in buffers)


@pytest.mark.parametrize("name", ["fused-fp32-kv-int8", "primitive-fp32-kv-int8", "primitive-fp32-kv-fp8"])
def test_an_answer_is_as_close_as_the_limits_say(coded_bundle: Path, name: str) -> None:
    with Session.open(coded_bundle, variant="fused-fp32", threads=1) as session:
        plain, plain_bytes = ask(session), {graph: cache_bytes(session, graph) for graph in ("trunk", "rpn", "tail")}
    with Session.open(coded_bundle, variant=name, threads=1) as session:
        coded, coded_bytes = ask(session), {graph: cache_bytes(session, graph) for graph in plain_bytes}
        limits = tolerances_of(session.variant.numerics)
    maps, steps = zip(*(traced(answer) for answer in (plain, coded)), strict=True)
    cosine = float(maps[0] @ maps[1] / np.linalg.norm(maps[0]) / np.linalg.norm(maps[1]))
    assert limits.roi_cosine <= cosine < 1.0, f"cosine {cosine:.7f}"
    first = np.abs(steps[0][0] - steps[1][0]).max()
    assert 0.0 < first <= limits.token_logit, f"logits differ by {first:.2e}"
    # After that, tokens of random weights are so close together that fp8 may change two of them.
    same = 1 if "fp8" in name else len(plain.token_ids)
    assert coded.token_ids[:same] == plain.token_ids[:same]
    # 16 codes and a scale of 4 bytes in place of 16 floats; the RPN's are as they were.
    for graph in ("trunk", "tail"):
        assert coded_bytes[graph] / plain_bytes[graph] == (16 + 4) / 64
    assert coded_bytes["rpn"] == plain_bytes["rpn"]
