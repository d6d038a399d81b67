"""Many clients of `sdrpn serve` at once against one after the other, through the same server in the same run.

    python benchmarks/serve_load.py [BUNDLE] [--clients 32] [--seconds 60] [--alone 20] [--pictures 8] [--max-tokens 12]
                                    [--max-stall-ms 200] [--threads N] [--question TEXT]
                                    [--variant NAME] [--backend NAME]

The server is a process of its own. Every answer is compared with what a session answers offline; every second request
is streamed. Clients ask about rendered scenes, in turns, so that most pictures are known. Memory is the server's, when
all pictures were asked about once, and at the end. CPU time per answer, of the server and of the clients, does not
depend on what else the machine does; rates do: where others use it, run this with `chrt -r 1`, which the server
inherits. Prints JSON; the exit code is 1 for a wrong answer, or a status of 500 and above.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from sdrpn.host.machine import read_cpu
from sdrpn.runtime import Session
from sdrpn.runtime.backends.registry import AUTOMATIC
from sdrpn.tags import tag_samples

SEED = 20


@dataclass(frozen=True)
class Asked:
    body: bytes
    streamed: bytes
    expected: str


@dataclass
class Figures:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    longest_gap_s: list[float] = field(default_factory=list)  # between two pieces, at the client
    longest_wait_s: list[float] = field(default_factory=list)  # between two tokens, at the server
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    took_s: float = 0.0
    server_cpu_s: float = 0.0
    clients_cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        answered = self.statuses[200]
        return {
            "answers": answered,
            "answers_per_s": round(answered / self.took_s, 3),
            "wrong": self.wrong,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "server_cpu_s_per_answer": round(self.server_cpu_s / max(1, answered), 5),
            "clients_cpu_s_per_answer": round(self.clients_cpu_s / max(1, answered), 5),
            "latency_s": percentiles(self.seconds),
            "first_token_s": percentiles(self.first_token_s),
            "longest_gap_s": percentiles(self.longest_gap_s),
            "longest_wait_s": percentiles(self.longest_wait_s),
        }


def percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, (50, 95, 99, 100))
    return {name: round(float(value), 4) for name, value in zip(("p50", "p95", "p99", "max"), found, strict=True)}


def prepared(
    bundle: str,
    pictures: int,
    max_tokens: int,
    question: str | None,
    threads: int | None,
    *,
    variant: str | None = None,
    backend: str = AUTOMATIC,
) -> list[Asked]:
    """Requests, with what the bundle answers offline."""
    found = []
    with Session.open(bundle, variant=variant, backend=backend, threads=threads) as session:
        for sample in tag_samples("heldout", pictures, SEED):
            file = io.BytesIO()
            sample.image.save(file, "PNG")
            text = question or sample.question
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
            expected = session.answer(sample.image, text, max_new_tokens=max_tokens).text
            streamed = json.dumps({**body, "stream": True}).encode()
            found.append(Asked(json.dumps(body).encode(), streamed, expected))
    return found


async def ask(client: httpx.AsyncClient, asked: Asked, figures: Figures, streamed: bool) -> None:
    start = last = time.perf_counter()
    pieces, gaps, extras = list[str](), list[float](), None
    body = asked.streamed if streamed else asked.body
    async with client.stream("POST", "/v1/chat/completions", content=body) as reply:
        if not streamed or reply.status_code != 200:
            await reply.aread()
        else:
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                text = chunk["choices"][0]["delta"].get("content")
                extras = chunk.get("sdrpn") or extras
                if text:
                    now = time.perf_counter()
                    if pieces:
                        gaps.append(now - last)
                    else:
                        figures.first_token_s.append(now - start)
                    last = now
                    pieces.append(text)
    figures.statuses[reply.status_code] += 1
    if reply.status_code != 200:
        await asyncio.sleep(float(reply.headers.get("retry-after", 0)))
        return
    if not streamed:
        whole = reply.json()
        pieces, extras = [whole["choices"][0]["message"]["content"]], whole["sdrpn"]
    assert extras is not None
    figures.seconds.append(time.perf_counter() - start)
    figures.longest_gap_s += [max(gaps)] if gaps else []
    figures.longest_wait_s.append(extras["stages"]["longest_wait_s"])
    figures.wrong += "".join(pieces) != asked.expected


async def load(server: Served, requests: list[Asked], clients: int, seconds: float) -> Figures:
    """So many clients, each with one request at a time."""
    figures, start = Figures(), time.perf_counter()
    server_cpu_s, clients_cpu_s = server.cpu_s(), time.process_time()

    async def one_client(number: int, client: httpx.AsyncClient) -> None:
        turn = number
        while time.perf_counter() - start < seconds:
            await ask(client, requests[turn % len(requests)], figures, streamed=turn % 2 == 1)
            turn += clients + 1 if clients > 1 else 1

    limits = httpx.Limits(max_connections=clients)
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits, headers=headers) as client:
        await asyncio.gather(*(one_client(number, client) for number in range(clients)))
    figures.took_s = time.perf_counter() - start
    figures.server_cpu_s, figures.clients_cpu_s = server.cpu_s() - server_cpu_s, time.process_time() - clients_cpu_s
    return figures


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def memory_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", text)[0])

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def decode_batch(self) -> float:
        """Tokens of a decode step, on average."""
        metrics = httpx.get(f"{self.url}/metrics").text
        steps, tokens = (
            float(re.findall(rf"^sdrpn:{name}_total{{.*}} (.*)$", metrics, re.MULTILINE)[0])
            for name in ("decode_steps", "decode_step_tokens")
        )
        return round(tokens / steps, 3)


def begun(bundle: str, options: argparse.Namespace, *more: str) -> Served:
    """A server of its own. Of `options`, threads, variant, backend and max_batch are passed on where they are given."""
    command = [sys.executable, "-m", "sdrpn", "serve", bundle, "--port", "0", "--log-format", "none", *more]
    for name in ("threads", "variant", "backend", "max_batch"):
        value = getattr(options, name, None)
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if "listening on" in line:
            return Served(server, line.split()[-1])
    raise SystemExit("the server did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--alone", type=float, default=20)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--max-stall-ms", type=float, default=200)
    parser.add_argument("--max-batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--variant")
    parser.add_argument("--backend", default=AUTOMATIC)
    parser.add_argument("--question")
    options = parser.parse_args()
    requests = prepared(
        options.bundle,
        options.pictures,
        options.max_tokens,
        options.question,
        options.threads,
        variant=options.variant,
        backend=options.backend,
    )
    limits = ("--max-stall-ms", str(options.max_stall_ms), "--max-queue", str(options.clients))
    server = begun(options.bundle, options, *limits)
    try:
        asyncio.run(load(server, requests, 1, options.alone / 4))  # every picture once
        before = server.memory_bytes()
        alone = asyncio.run(load(server, requests, 1, options.alone))
        together = asyncio.run(load(server, requests, options.clients, options.seconds))
        after, batch = server.memory_bytes(), server.decode_batch()
    finally:
        server.process.terminate()
        server.process.wait(60)
    found = {
        "cpu": read_cpu().name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "options": vars(options),
        "alone": alone.to_json(),
        "together": together.to_json(),
        "times_the_throughput": round(together.to_json()["answers_per_s"] / alone.to_json()["answers_per_s"], 3),
        "batch": batch,
        "server_memory_bytes": {"before": before, "after": after},
    }
    print(json.dumps(found, indent=1))
    bad = alone.wrong + together.wrong + sum(c for f in (alone, together) for s, c in f.statuses.items() if s >= 500)
    return 1 if bad or not together.statuses[200] else 0


if __name__ == "__main__":
    sys.exit(main())
