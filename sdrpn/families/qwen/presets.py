"""Thresholds and token budgets of the official evaluations, by family, scheme and task. Tables alone."""

from __future__ import annotations

from sdrpn.errors import BadInput
from sdrpn.host.suggestion import unknown_choice
from sdrpn.method.preset import TASKS, Preset, Task
from sdrpn.method.spec import Scheme

__all__ = ["preset"]

_USUAL, _READING, _LARGE = (256, 576), (128, 576), (512, 4096)
# Q-Zoom's eval_only scripts: TextVQA and InfoVQA, DocVQA, ChartQA, OCRBench, V*, HR-Bench.
_QZOOM_25: dict[Task, Preset] = {
    "scene": Preset(0.15, 0.05, _USUAL),
    "document": Preset(0.125, 0.05, _USUAL),
    "chart": Preset(0.125, 0.05, _USUAL),
    "reading": Preset(0.15, 0.05, _READING),
    "search": Preset(0.03, 0.02, _LARGE),
    "high-resolution": Preset(0.04, 0.02, _LARGE),
}
_QZOOM_3: dict[Task, Preset] = {
    "scene": Preset(0.15, 0.1, _USUAL),
    "document": Preset(0.15, 0.1, _USUAL),
    "chart": Preset(0.15, 0.1, _USUAL),
    "reading": Preset(0.125, 0.1, _READING),
    "search": Preset(0.1, 0.025, _LARGE),
    "high-resolution": Preset(0.1, 0.025, _LARGE),
}
# SD-RPN's scripts have 576 tokens fixed, and 1024 to 4096 for V* and HR-Bench. The two released sizes differ.
_FIXED, _FIXED_LARGE = (576, 576), (1024, 4096)
_SDRPN_3B: dict[Task, Preset] = {
    "scene": Preset(0.15, None, _FIXED),
    "document": Preset(0.1, None, _FIXED),
    "chart": Preset(0.1, None, _FIXED),
    "reading": Preset(0.03, None, _FIXED),
    "search": Preset(0.075, None, _FIXED_LARGE),
    "high-resolution": Preset(0.05, None, _FIXED_LARGE),
}
_SDRPN_7B: dict[Task, Preset] = {
    "scene": Preset(0.075, None, _FIXED),
    "document": Preset(0.1, None, _FIXED),
    "chart": Preset(0.1, None, _FIXED),
    "reading": Preset(0.05, None, _FIXED),
    "search": Preset(0.05, None, _FIXED_LARGE),
    "high-resolution": Preset(0.03, None, _FIXED_LARGE),
}
_WIDTH_OF_7B = 3584


def preset(task: str, *, family: str, scheme: Scheme, llm_width: int) -> Preset:
    """The official figures for a task. Raises BadInput for an unknown one.

    llm_width: D; SD-RPN's two released models, 3B and 7B, have figures of their own
    """
    if family == "qwen3-vl":
        table = _QZOOM_3
    elif scheme == "q-zoom":
        table = _QZOOM_25
    else:
        table = _SDRPN_7B if llm_width >= _WIDTH_OF_7B else _SDRPN_3B
    for known in TASKS:
        if known == task:
            return table[known]
    raise BadInput(f"the preset {unknown_choice(task, TASKS)}")
