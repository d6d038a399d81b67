"""`sdrpn serve` against llama-server: the same questions without a picture, of so many tokens, in turns.

    python benchmarks/serve_llama.py --llama llama-server --gguf q4_0.gguf \\
        --ours b128:fused-int4:openvino --ours b128:fused-int4-cpu:onnxruntime \\
        [--clients 4] [--new-tokens 32,128] [--requests 12] [--rounds 3] [--threads 2] [--json]

llama-server is compiled from llama.cpp's sources, which the source distribution of llama-cpp-python on PyPI has:
`cmake -G Ninja -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DBUILD_SHARED_LIBS=OFF`, target
`llama-server`. The GGUF and the bundles are random models of one shape: see `all.sh`.

All servers run at once, and one works at a time: a turn is so many requests to one of them by that many clients, each
with one at a time. Every prompt is new, neither server keeps any, and both answer as many tokens as are asked for.
CPU time per request does not depend on what else the machine does; rates do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from serve_load import percentiles

from sdrpn.host.machine import read_cpu

PROMPT_TOKENS, SEED, START_S = 640, 7, 300
LETTERS = string.ascii_lowercase.replace(
    "w", ""
)  # a token each in either vocabulary; of the GGUF's, w begins longer ones


@dataclass
class Turn:
    """One server's answers within one turn."""

    took_s: float
    cpu_s: float
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.took_s


@dataclass
class Side:
    """A server that runs."""

    name: str
    url: str
    pid: int
    around: int = 0  # tokens of a prompt besides those of its text
    extras: dict[str, Any] = field(default_factory=dict)
    turns: dict[int, list[Turn]] = field(default_factory=dict)  # by the number of new tokens

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def body(self, chooser: random.Random, new_tokens: int) -> dict[str, Any]:
        """A request of PROMPT_TOKENS tokens in all."""
        text = "".join(chooser.choices(LETTERS, k=PROMPT_TOKENS - self.around))
        return {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": new_tokens,
            "temperature": 0,
            **self.extras,
        }

    async def answer(self, client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        """The usage of an answer."""
        reply = await client.post(f"{self.url}/v1/chat/completions", json=body)
        if reply.status_code != 200:
            raise SystemExit(f"{self.name} answered {reply.status_code}: {reply.text[:500]}")
        usage: dict[str, Any] = reply.json()["usage"]
        return usage

    async def calibrate(self) -> None:
        """Count the tokens that its template adds."""
        async with httpx.AsyncClient(timeout=600) as client:
            usage = await self.answer(client, self.body(random.Random(SEED), 2))
            self.around = usage["prompt_tokens"] - PROMPT_TOKENS

    async def turn(self, chooser: random.Random, clients: int, requests: int, new_tokens: int) -> Turn:
        bodies = iter([self.body(chooser, new_tokens) for _ in range(requests)])
        turn, start, cpu_s = Turn(0, 0), time.perf_counter(), self.cpu_s()

        async def one_client(client: httpx.AsyncClient) -> None:
            for body in bodies:
                began = time.perf_counter()
                usage = await self.answer(client, body)
                turn.seconds.append(time.perf_counter() - began)
                if (usage["prompt_tokens"], usage["completion_tokens"]) != (PROMPT_TOKENS, new_tokens):
                    raise SystemExit(f"{self.name} counted {usage}; expected {PROMPT_TOKENS} and {new_tokens} tokens")

        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients)) as client:
            await asyncio.gather(*(one_client(client) for _ in range(clients)))
        turn.took_s, turn.cpu_s = time.perf_counter() - start, self.cpu_s() - cpu_s
        return turn

    def to_json(self, new_tokens: int) -> dict[str, Any]:
        turns = self.turns[new_tokens]
        return {
            "requests_per_s": [round(turn.rate, 4) for turn in turns],
            "median_requests_per_s": round(statistics.median(turn.rate for turn in turns), 4),
            "latency_s": percentiles([seconds for turn in turns for seconds in turn.seconds]),
            "cpu_s_per_request": round(sum(t.cpu_s for t in turns) / sum(len(t.seconds) for t in turns), 4),
        }


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def ours(form: str, options: argparse.Namespace) -> Iterator[Side]:
    """form: BUNDLE:VARIANT:BACKEND"""
    bundle, variant, backend = form.split(":")
    command = [
        sys.executable,
        "-m",
        "sdrpn",
        "serve",
        bundle,
        "--variant",
        variant,
        "--backend",
        backend,
        "--port",
        "0",
    ]
    command += ["--threads", str(options.threads), "--max-batch", str(options.clients), "--log-format", "none"]
    process = subprocess.Popen([*command, "--cache-bytes", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with ended(process):
        said = []
        for line in process.stderr:
            said.append(line)
            if "listening on" in line:
                yield Side(f"sdrpn {Path(bundle).name} {variant} {backend}", line.split()[-1], process.pid)
                return
        raise SystemExit(f"sdrpn serve did not start: {''.join(said)}")


@contextlib.contextmanager
def llama(options: argparse.Namespace) -> Iterator[Side]:
    url, slot = f"http://127.0.0.1:{options.port}", PROMPT_TOKENS + max(options.new_tokens) + 64
    command = [options.llama, "-m", str(options.gguf), "--host", "127.0.0.1", "--port", str(options.port), "--jinja"]
    command += [
        "-np",
        str(options.clients),
        "-c",
        str(options.clients * slot),
        "--cache-ram",
        "0",
        *options.llama_options,
    ]
    command += ["-t", str(options.threads), "-tb", str(options.threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    with ended(process):
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"llama-server did not start: {' '.join(command)}")
            time.sleep(0.2)
        extras = {"cache_prompt": False, "ignore_eos": True}
        yield Side(f"llama-server {Path(options.gguf).stem}", url, process.pid, extras=extras)


async def measure(sides: list[Side], options: argparse.Namespace) -> None:
    chooser = random.Random(SEED)
    for side in sides:
        await side.calibrate()
        await side.turn(chooser, options.clients, options.clients, 2)  # warm
    for new_tokens in options.new_tokens:
        for number in range(options.rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                turn = await side.turn(chooser, options.clients, options.requests, new_tokens)
                side.turns.setdefault(new_tokens, []).append(turn)
                print(f"{new_tokens} new tokens, {side.name}: {turn.rate:.3f} requests/s", file=sys.stderr, flush=True)


def results(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    """The last side is llama-server; ratios of medians, and of each round alone."""
    *mine, other = sides
    found: dict[str, Any] = {}
    for new_tokens in options.new_tokens:
        theirs = other.to_json(new_tokens)
        found[str(new_tokens)] = {other.name: theirs}
        for side in mine:
            entry = side.to_json(new_tokens)
            pairs = zip(entry["requests_per_s"], theirs["requests_per_s"], strict=True)
            entry["times_llama_server"] = round(entry["median_requests_per_s"] / theirs["median_requests_per_s"], 3)
            entry["times_in_each_round"] = [round(a / b, 3) for a, b in pairs]
            found[str(new_tokens)][side.name] = entry
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True, help="the program llama-server")
    parser.add_argument("--gguf", required=True, type=Path)
    parser.add_argument("--ours", action="append", required=True, metavar="BUNDLE:VARIANT:BACKEND")
    parser.add_argument("--llama-options", nargs="*", default=[], help="further ones of llama-server")
    parser.add_argument("--port", type=int, default=18080, help="port of llama-server")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=12, help="in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=lambda text: [int(part) for part in text.split(",")], default=[32, 128])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(ours(form, options)) for form in options.ours]
        sides.append(stack.enter_context(llama(options)))
        asyncio.run(measure(sides, options))
    found = results(sides, options)
    if options.json:
        machine = {"cpu": read_cpu().name, "cores": os.cpu_count(), "python": platform.python_version()}
        asked = {**vars(options), "gguf": str(options.gguf)}
        print(json.dumps({"format_version": 1, **machine, "options": asked, "new_tokens": found}, indent=1))
        return 0
    for new_tokens, entries in found.items():
        print(f"{options.clients} clients, prompts of {PROMPT_TOKENS} tokens, {new_tokens} new ones")
        for name, entry in entries.items():
            latency, times = entry["latency_s"], entry.get("times_llama_server")
            ratio = "" if times is None else f"  {times:.2f} times llama-server {entry['times_in_each_round']}"
            print(
                f"  {name:40} {entry['median_requests_per_s']:.3f} requests/s  p50 {latency['p50']:.2f} s  "
                f"p95 {latency['p95']:.2f} s  {entry['cpu_s_per_request']:.2f} s of CPU per request{ratio}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
