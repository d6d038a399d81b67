"""ONNX Runtime on a GPU against ONNX Runtime on the CPU, through the same session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.runtime import Session
from tests.tolerances import CUDA_LOGITS_ABS

pytestmark = pytest.mark.gpu

BEFORE, QUESTION, OTHER = (1, 5, 6, 7), (8, 9, 10, 11, 12), (20, 21, 22)


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((10, 5, 60, 50)),), None, logits)


def test_same_answers_as_the_cpu(tiny_bundle: Path) -> None:
    backend, variant = "onnxruntime-cuda", "fused-fp32"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    answers = {}
    for name in ("onnxruntime", backend):
        with Session.open(tiny_bundle, backend=name, variant=variant) as session:
            answers[name] = [
                session.answer_ids(image, BEFORE, question, roi=None, decide=one_box, max_new_tokens=6, trace=True)
                for question in (QUESTION, OTHER)
            ]
    for found, expected in zip(answers[backend], answers["onnxruntime"], strict=True):
        assert found.trace is not None
        assert expected.trace is not None
        assert found.token_ids == expected.token_ids
        difference = np.abs(found.trace.step_logits - expected.trace.step_logits).max()
        assert difference <= CUDA_LOGITS_ABS, f"logits differ by {difference:.2e}"
