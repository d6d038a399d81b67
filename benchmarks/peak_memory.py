"""Peak memory of one answer with one box, in a process that has loaded nothing but the runtime.

python benchmarks/peak_memory.py BUNDLE [VARIANT]     # JSON: peak RSS, weights and caches in bytes
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.runtime import Session

BEFORE, AFTER = tuple(range(3, 38)), tuple(range(40, 80))


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((100, 100, 600, 500)),), None, logits)


def main() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1008, 1344, 3), dtype=np.uint8)
    with Session.open(sys.argv[1], variant=sys.argv[2] if len(sys.argv) > 2 else None) as session:
        session.answer_ids(image, BEFORE, AFTER, roi=None, decide=one_box, max_new_tokens=16)
        caches = [buffer for caches in session._decoder.slots.caches.values() for buffer in caches.buffers.values()]
        cache_bytes = sum(int(np.prod(buffer.shape)) * buffer.dtype.itemsize for buffer in caches)
        exported = session.bundle.variant(session.variant.name)  # those of saved graphs are other files
        weight_bytes = sum(session.bundle.manifest.files[name].size_bytes for name in exported.files)
    print(json.dumps({"peak_bytes": peak_rss_bytes(), "weight_bytes": weight_bytes, "cache_bytes": cache_bytes}))


def peak_rss_bytes() -> int:
    """Peak memory of this process: getrusage's figure would include that of the process that launched it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
