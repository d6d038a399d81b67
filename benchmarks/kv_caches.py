"""Prefill and decode with caches in fp32, fp16 and 8 bits on OpenVINO, all in turns in one process.

    python benchmarks/kv_caches.py BUNDLE --rows 640,2000 --rounds 5

The LLM of an INT4 bundle (variants fused-int4-cpu and fused-int4), as a plain LLaVA runs it. Ratios are medians over
the pairs of a round, by the clock and of processor time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from sdrpn.host.machine import read_cpu
from sdrpn.runtime import Session
from sdrpn.runtime.opening import OpeningRequest, RunOptions

FORMS = {
    "fp32": RunOptions(backend="openvino", variant="fused-int4-cpu", verify=False),
    "fp16": RunOptions(backend="openvino", variant="fused-int4", verify=False),
    "int8": RunOptions(backend="openvino", variant="fused-int4-cpu", kv_cache="int8", verify=False),
}
STEPS = 16


def measured(session: Session, rows: int) -> tuple[float, float, float, float]:
    """Seconds by the clock and of processor time: of a prefill of so many rows, and of a step behind it."""
    decoder, embedding = session._decoder, session._embedding
    slot = decoder.slots.all[0]
    decoder.slots.reset(slot, rows + STEPS)
    embeds, token = embedding.rows([3 + index % 200 for index in range(rows)]), embedding.rows([7])
    start, processor = time.perf_counter(), time.process_time()
    decoder.run_trunk(slot, embeds, 0)
    decoder.run_tail(slot, 0, rows)
    prefill = time.perf_counter() - start, time.process_time() - processor
    start, processor = time.perf_counter(), time.process_time()
    for position in range(rows, rows + STEPS):
        decoder.step_one(slot, token, position)
    return *prefill, (time.perf_counter() - start) / STEPS, (time.process_time() - processor) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", default="640,2000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    sessions = {
        name: Session.open_with(OpeningRequest(args.bundle, RunOptions(**{**vars(run), "threads": args.threads})))
        for name, run in FORMS.items()
    }
    for rows in map(int, args.rows.split(",")):
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in sessions}
        for number in range(args.rounds + 1):
            for name, session in sessions.items():
                times = measured(session, rows)
                if number:  # the first round warms up
                    found[name].append(times)
        for name, rounds in found.items():
            pairs = list(zip(found["fp32"], rounds, strict=True))
            ratios = [statistics.median(first[index] / other[index] for first, other in pairs) for index in range(4)]
            step = sessions[name].step_bytes(rows)
            figures = {
                "processor": read_cpu().name,
                "threads": args.threads,
                "rows": rows,
                "caches": name,
                "prefill_s": statistics.median(each[0] for each in rounds),
                "step_ms": 1000 * statistics.median(each[2] for each in rounds),
                "step_processor_ms": 1000 * statistics.median(each[3] for each in rounds),
                "step_bytes": step,
                "fp32 / this": dict(
                    zip(("prefill", "prefill, processor", "step", "step, processor"), ratios, strict=True)
                ),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
