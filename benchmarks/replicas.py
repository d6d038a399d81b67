"""The simulation of examples/sizing compared with real servers: the same trace, latencies and utilisation side by side.

    python benchmarks/replicas.py [BUNDLE] [--replicas 2] [--busy 0.6] [--seconds 60] [--rounds 3]

In one run: servers of one thread each start; they are measured at the same time as examples/sizing/measure.py does; a
random trace of the load that `--busy` asks for is replayed on all of them, each question on the server that its picture
belongs to; and it is simulated with the measured times. Answers are cut off at the tokens of the trace. Utilisation is
the processor time of a server over the time of the round. Prints JSON; the exit code is 1 where a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "sizing"))

import httpx
from measure import body, measured, picture_urls
from simulate import Asked, Times, percentile, random_trace, replica_of, simulate

from sdrpn import plan_memory
from sdrpn.host.machine import read_cpu
from sdrpn.host.threads import usable_cores

SEED = 11


@contextlib.contextmanager
def servers(bundle: str, count: int, batch: int) -> Iterator[list[tuple[str, int]]]:
    """Address and process of each."""
    command = [sys.executable, "-m", "sdrpn", "serve", bundle, "--port", "0", "--log-format", "none"]
    command += ["--threads", "1", "--max-batch", str(batch), "--max-queue", "1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(count)]
    try:
        found = []
        for process in begun:
            assert process.stderr is not None
            line = next((line for line in process.stderr if "listening on" in line), None)
            if line is None:
                raise SystemExit("a server did not start")
            found.append((line.split()[-1], process.pid))
        yield found
    finally:
        for process in begun:
            process.terminate()
        for process in begun:
            process.wait(60)


def processor_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def replay(trace: list[Asked], urls: dict[str, str], running: list[tuple[str, int]]) -> dict[str, Any]:
    """What clients see of the real servers."""
    before = [processor_s(process) for _, process in running]
    latency_s: list[float] = [0.0] * len(trace)
    tokens = [asked.tokens for asked in trace]
    known, failed, start = 0, 0, time.perf_counter()

    async def one(number: int, asked: Asked, client: httpx.AsyncClient) -> None:
        nonlocal known, failed
        await asyncio.sleep(max(0.0, start + asked.at_s - time.perf_counter()))
        began = time.perf_counter()
        url = running[replica_of(asked.picture, len(running))][0]
        content = json.dumps(body(urls[asked.picture], asked.tokens))
        reply = await client.post(f"{url}/v1/chat/completions", content=content)
        latency_s[number] = time.perf_counter() - began
        if reply.status_code == 200:
            usage = reply.json()["usage"]
            known += usage["prompt_tokens_details"]["cached_tokens"] > 100
            tokens[number] = usage["completion_tokens"]
        else:
            failed += 1

    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(timeout=600, limits=limits, headers={"Content-Type": "application/json"}) as client:
        await asyncio.gather(*(one(number, asked, client) for number, asked in enumerate(trace)))
    took_s = time.perf_counter() - start
    busy = [(processor_s(process) - was) / took_s for (_, process), was in zip(running, before, strict=True)]
    return {
        "latency_s": {f"p{p}": percentile(latency_s, p) for p in (50, 95, 99)},
        "known": known / len(trace),
        "utilisation": sum(busy) / len(busy),
        "failed": failed,
        "tokens": tokens,  # answers may end earlier than they were allowed to
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--busy", type=float, default=0.6, help="how busy replicas should be (default: 0.6)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    urls = {f"picture {number}": url for number, url in enumerate(picture_urls(options.pictures, SEED))}
    rounds, failed = [], 0
    with servers(options.bundle, options.replicas, options.max_batch) as running:
        for number in range(options.rounds):
            addresses = [address for address, _ in running]
            found = asyncio.run(measured(addresses, options.max_batch, 4, 2 * options.tokens, None))
            times = Times(
                found["first_s"],
                found["known_s"],
                tuple(found["step_s"]),
                found["beside_s"],
                max(1, plan_memory(options.bundle).prefixes.pictures),
                one_core=usable_cores() <= options.replicas,
                together=found.get("together", 1.0),
            )
            each_s = (times.known_s + options.tokens * times.step_s[0]) * times.together
            rate = options.busy * options.replicas / each_s
            trace = random_trace(rate, options.seconds, options.pictures, options.tokens, number)
            real = asyncio.run(replay(trace, urls, running))
            ended = [dataclasses.replace(a, tokens=t) for a, t in zip(trace, real.pop("tokens"), strict=True)]
            outcome = simulate(ended, times, options.replicas)
            failed += real["failed"]
            ratio = percentile(outcome.latency_s, 95) / real["latency_s"]["p95"]
            rounds.append(
                {
                    "times": found,
                    "rate": round(rate, 3),
                    "requests": len(trace),
                    "real": real,
                    "simulated": outcome.to_json(),
                    "p95_ratio": round(ratio, 3),
                    "load_average": os.getloadavg()[0],
                }
            )
            print(f"round {number}: p95 simulated over real {ratio:.2f}", file=sys.stderr)
    print(json.dumps({"cpu": read_cpu().name, "options": vars(options), "rounds": rounds}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
