"""The CUDA kernels against the CPU, which has the same arithmetic. The values must be the same, not only close."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

BOXES = np.array([[0, 0, 301, 203], [3, 5, 40, 9], [-50, -99, 351, 302]], np.int64)
SIZE_HW = (61, 47)
OPTIONS: dict[str, Any] = {"filter": "bicubic", "colour": (122, 116, 104)}
SCALE: dict[str, Any] = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}


def test_the_workspace_holds_windows_and_a_strip() -> None:
    cuda: Any = pytest.importorskip("sdrpn._native_cuda", exc_type=ImportError)
    strip_bytes = 203 * SIZE_HW[1] * 3
    assert cuda.workspace_bytes((203, 301), SIZE_HW, BOXES, **OPTIONS) > strip_bytes
    with pytest.raises(ValueError, match="leaves the picture of 301x203 px"):
        cuda.workspace_bytes((203, 301), SIZE_HW, BOXES, filter="bicubic", colour=None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_values_are_those_of_the_cpu(dtype: str) -> None:
    cuda: Any = pytest.importorskip("sdrpn._native_cuda", exc_type=ImportError)
    cpu: Any = pytest.importorskip("sdrpn._native", exc_type=ImportError)
    torch: Any = pytest.importorskip("torch")
    picture = np.random.default_rng(0).integers(0, 256, (203, 301, 3), dtype=np.uint8)
    expected = np.empty((len(BOXES), 3, *SIZE_HW), dtype)
    cpu.prepare(picture, BOXES, expected, **OPTIONS, **SCALE)
    source = torch.from_numpy(picture).cuda()
    out = torch.empty(expected.shape, dtype=getattr(torch, dtype), device="cuda")
    size_bytes = cuda.workspace_bytes(picture.shape[:2], SIZE_HW, BOXES, **OPTIONS)
    workspace = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    cuda.prepare(
        source.data_ptr(),
        picture.shape[:2],
        picture.strides[0],
        BOXES,
        out.data_ptr(),
        SIZE_HW,
        half=dtype == "float16",
        workspace=workspace.data_ptr(),
        workspace_size=size_bytes,
        stream=torch.cuda.current_stream().cuda_stream,
        **OPTIONS,
        **SCALE,
    )
    torch.cuda.synchronize()
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
