"""The vision graphs of both Qwen families compile with TensorRT-RTX; windows become fused attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdrpn.engines.layers import kernels_from_log
from tests.export.test_qwen_vision import written
from tests.families.qwen.checkpoint import CONFIG_3, CONFIG_25, config_of, write_qwen

pytest.importorskip("tensorrt_rtx_bindings")

# Heads as wide as the released towers have them: 80 channels, and 64 as Qwen3-VL-2B and 4B.
TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2.5-vl": (CONFIG_25, {"hidden_size": 160, "intermediate_size": 320, "depth": 4, "fullatt_block_indexes": [2]}),
    "qwen3-vl": (CONFIG_3, {"hidden_size": 128, "intermediate_size": 320, "depth": 3}),
}
EXTENTS = {"patches": (4, 1564, 2304), "windows": (1, 30, 64)}


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize("family", TOWERS)
def test_every_layer_is_one_fused_attention(tmp_path: Path, family: str, dialect: str) -> None:
    from tests.export.trt_rtx import build

    base, changes = TOWERS[family]
    config = config_of(base, vision_config={**base["vision_config"], **changes})
    built = build(written(write_qwen(tmp_path / "model", config), tmp_path / "graph", dialect, "fp16"), extents=EXTENTS)
    assert built.plan_bytes > 0, built.errors
    found = {kernel.name: kernel for kernel in kernels_from_log(built.messages)}
    attentions = [kernel for name, kernel in found.items() if "_mha_v" in name]
    assert len(attentions) == changes["depth"]
    assert not any("oftmax" in name for name in found)
    # Queries of a windowed layer are rows of one window; W times heads is the dynamic dimension.
    within = [kernel for kernel in attentions if kernel.inputs[0].dims == (-1, 64, 80)]
    assert len(within) == (3 if family == "qwen2.5-vl" else 0)
