"""The estimate of `sdrpn plan` compared with the memory that a process took, over pictures of several sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.workflows.memory_plan import plan_memory
from tests.tolerances import PLANNED_PEAK_SHARE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")]

# A process that has answered before: what it then holds, and a large picture, are there together.
PROGRAM = """
import json, re, sys
from pathlib import Path
from sdrpn.runtime import Session
small, picture, backend = sys.argv[1:]
with Session.open("demo", backend=backend, threads=1, max_batch=1, prefix_bytes=0) as session:
    for path in (small, picture):
        answer = session.answer(Path(path), "what is the code on the yellow tag ?", max_new_tokens=16)
tokens = answer.tokens.prompt + answer.tokens.roi + 16
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"peak": peak, "context": -(-tokens // 64) * 64}))
"""


def picture(folder: Path, side: int, kind: str) -> Path:
    noise = np.random.default_rng(side).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    path = folder / f"{side}.{kind}"
    Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST).save(path)
    return path


@pytest.mark.parametrize(
    ("side", "kind", "backend"),
    [(64, "png", "onnxruntime"), (64, "png", "openvino"), (6000, "png", "onnxruntime"), (12000, "jpg", "onnxruntime")],
)
def test_the_peak_is_what_plan_says(tmp_path: Path, side: int, kind: str, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    large = picture(tmp_path, side, kind)
    command = [sys.executable, "-c", PROGRAM, str(picture(tmp_path, 64, "png")), str(large), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    planned = plan_memory("demo", backend=backend, contexts=(found["context"],), picture=large).needs.total_bytes
    share = planned / found["peak"]
    assert abs(share - 1) <= PLANNED_PEAK_SHARE, f"{planned:,} bytes planned, {found['peak']:,} measured"
