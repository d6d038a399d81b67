"""examples/ray/rack.py with one replica and with two in one run: answers, known pictures, a replica that is killed.

    python benchmarks/ray_replicas.py [BUNDLE] [--clients 8] [--seconds 20] [--pictures 8] [--max-tokens 12]

Every answer is compared with what a session answers offline. Clients ask about rendered scenes in turns, every second
request is streamed; each round has the same requests. In the last round the process of a replica is killed under load;
a request that fails then is asked again once. Prints JSON; the exit code is 1 for a wrong or a lost answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from serve_load import Asked, percentiles, prepared

from sdrpn.host.machine import read_cpu

RACK = Path(__file__).parents[1] / "examples" / "ray" / "rack.py"
TITLE = "ray::ServeReplica:sdrpn:Replica"  # as Ray names the process


@dataclass
class Round:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: int = 0  # at the first try
    lost: int = 0  # at the second one as well
    took_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "answers": len(self.seconds),
            "answers_per_s": round(len(self.seconds) / self.took_s, 2),
            "wrong": self.wrong,
            "failed_once": self.failed,
            "lost": self.lost,
            "latency_s": percentiles(self.seconds),
        }


@contextlib.contextmanager
def rack(bundle: str, replicas: int, *options: str) -> Iterator[str]:
    """The URL of a rack of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(RACK), bundle, "--replicas", str(replicas), "--port", str(port), "--threads", "1"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "listening on" in line:
                yield f"http://127.0.0.1:{port}"
                return
        raise SystemExit("the rack did not start")
    finally:
        process.terminate()
        process.wait(120)


def replica_processes() -> list[int]:
    """Processes of replicas on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cmdline").read_bytes().decode(errors="replace").startswith(TITLE):
                found.append(int(folder.name))
    return sorted(found)


async def ask(client: httpx.AsyncClient, asked: Asked, streamed: bool) -> str | None:
    """The text of an answer; None where it failed."""
    try:
        reply = await client.post("/v1/chat/completions", content=asked.streamed if streamed else asked.body)
    except httpx.TransportError:
        return None
    if reply.status_code != 200:
        await asyncio.sleep(float(reply.headers.get("retry-after", 0.1)))
        return None
    if not streamed:
        text: str = reply.json()["choices"][0]["message"]["content"]
        return text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        return None
    chunks = [json.loads(line) for line in lines[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices"))


async def load(url: str, requests: list[Asked], clients: int, seconds: float, kill_at_s: float | None = None) -> Round:
    """So many clients, each with one request at a time."""
    found, start = Round(), time.perf_counter()

    async def one_client(number: int, client: httpx.AsyncClient) -> None:
        turn = number
        while time.perf_counter() - start < seconds:
            asked, began = requests[turn % len(requests)], time.perf_counter()
            text = await ask(client, asked, turn % 2 == 1)
            if text is None:
                found.failed += 1
                text = await ask(client, asked, turn % 2 == 1)
            if text is None:
                found.lost += 1
            else:
                found.wrong += text != asked.expected
                found.seconds.append(time.perf_counter() - began)
            turn += clients + 1

    async def killer() -> None:
        if kill_at_s is not None:
            await asyncio.sleep(kill_at_s)
            os.kill(replica_processes()[0], signal.SIGKILL)

    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=120, headers=headers) as client:
        await asyncio.gather(killer(), *(one_client(number, client) for number in range(clients)))
    found.took_s = time.perf_counter() - start
    return found


def known_share(url: str) -> float:
    """Share of the tokens of prompts that were known, of all replicas together."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    hits, queries = (
        sum(map(float, re.findall(rf"^vllm:prefix_cache_{name}_total{{.*}} (.*)$", page, re.MULTILINE)))
        for name in ("hits", "queries")
    )
    return round(hits / queries, 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--question")
    options = parser.parse_args()
    requests = prepared(options.bundle, options.pictures, options.max_tokens, options.question, 1)
    rounds: dict[str, Round] = {}
    known: dict[str, float] = {}
    for replicas in (1, 2):
        with rack(options.bundle, replicas) as url:
            asyncio.run(load(url, requests, 1, options.seconds / 4))  # what is loaded when it is first used
            rounds[f"{replicas}"] = asyncio.run(load(url, requests, options.clients, options.seconds))
            known[f"{replicas}"] = known_share(url)
            if replicas == 2:
                rounds["killed"] = asyncio.run(
                    load(url, requests, options.clients, options.seconds, options.seconds / 4)
                )
    figures = {name: each.to_json() for name, each in rounds.items()}
    print(
        json.dumps(
            {
                "cpu": read_cpu().name,
                "cores": os.cpu_count(),
                "options": vars(options),
                "rounds": figures,
                "known": known,
                "times_the_throughput": round(figures["2"]["answers_per_s"] / figures["1"]["answers_per_s"], 3),
            },
            indent=1,
        )
    )
    return 1 if any(each.wrong or each.lost for each in rounds.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
