"""Times of one replica for simulate.py, measured at a running server, or at one that it starts.

    python examples/sizing/measure.py bundle --threads 1 --out times.json
    python examples/sizing/measure.py --url http://127.0.0.1:8000 http://127.0.0.1:8001 --one-core --out times.json

It asks about rendered scenes that the server has not seen, and about the same again, alone; then as many known ones at
once as the server decodes together, whose decode steps it reports. The servers must have nothing else to do. All times
are medians. Name every replica that shares a machine: the first is measured alone and then all at the same time, for
they share its memory and caches.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from sdrpn import plan_memory
from sdrpn.tags import tag_samples

QUESTION = "what is the code on the yellow tag ?"


def picture_urls(count: int, seed: int, wh: tuple[int, int] | None = None) -> list[str]:
    """Rendered scenes as data URLs."""
    found = []
    for sample in tag_samples("heldout", count, seed):
        image, file = sample.image if wh is None else sample.image.resize(wh), io.BytesIO()
        image.save(file, "PNG")
        found.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    return found


def body(url: str, tokens: int, **more: Any) -> dict[str, Any]:
    """A question; an answer may end earlier."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, **more}


async def alone(client: httpx.AsyncClient, urls: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds of prefills, and of requests less their work, of a token each, one after the other."""
    prefills, beside = [], []
    for url in urls:
        start = time.perf_counter()
        reply = await client.post("/v1/chat/completions", json=body(url, 1))
        took_s = time.perf_counter() - start
        reply.raise_for_status()
        stages = reply.json()["sdrpn"]["stages"]
        prefills.append(stages["first_token_s"] - stages["waited_s"])
        beside.append(max(0.0, took_s - prefills[-1]))
    return prefills, beside


async def steps(client: httpx.AsyncClient, urls: Sequence[str], tokens: int) -> list[float]:
    """Seconds of a decode step, as each of some answers that run at once saw it; none of those that have one token."""

    async def answer(url: str) -> tuple[float, int]:
        reply = await client.post("/v1/chat/completions", json=body(url, tokens))
        reply.raise_for_status()
        found = reply.json()
        return found["sdrpn"]["stages"]["decode_s"], found["usage"]["completion_tokens"] - 1

    answers = await asyncio.gather(*(answer(url) for url in urls))
    return [seconds / count for seconds, count in answers if count]


async def measured(
    urls: Sequence[str], batch: int, pictures: int, tokens: int, wh: tuple[int, int] | None
) -> dict[str, Any]:
    """What simulate.py reads, but for how many pictures are known: times of the first alone, and how they grow."""

    async def of_all(servers: Sequence[str]) -> dict[str, Any]:
        found = await asyncio.gather(
            *(of_one(url, number, batch, pictures, tokens, wh) for number, url in enumerate(servers))
        )
        names = ("first_s", "known_s", "beside_s")
        return {
            **{name: statistics.median([seconds for server in found for seconds in server[name]]) for name in names},
            "step_s": [
                statistics.median([seconds for server in found for seconds in server["step_s"][count]])
                for count in range(batch)
            ],
        }

    alone = await of_all(urls[:1])
    if len(urls) == 1:
        return alone
    every = await of_all(urls)
    longer = [every[name] / alone[name] for name in ("first_s", "known_s")]
    longer += [seconds / own for seconds, own in zip(every["step_s"], alone["step_s"], strict=True)]
    return {**alone, "together": max(1.0, statistics.median(longer))}


async def of_one(
    url: str, number: int, batch: int, pictures: int, tokens: int, wh: tuple[int, int] | None
) -> dict[str, list[Any]]:
    """All single times of a server; decode steps by how many answers run."""
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=600, headers=headers) as client:
        await alone(client, picture_urls(1, 1, wh))  # what is loaded when it is first used
        urls = picture_urls(pictures, int(time.time()) + 1000 * number, wh)
        first, beside = await alone(client, urls)
        known = list[float]()
        for each in urls:  # again, at once: only the newest are certain to be known
            await alone(client, [each])
            again = await alone(client, [each])
            known += again[0]
            beside += again[1]
        step_s = []
        for count in range(1, batch + 1):
            own = urls[-count:]
            await alone(client, own)
            step_s.append(await steps(client, own, tokens))
            if not step_s[-1]:
                raise SystemExit("answers have one token: their decode steps cannot be measured")
    return {"first_s": first, "known_s": known, "step_s": step_s, "beside_s": beside}


@contextmanager
def servers(options: argparse.Namespace) -> Iterator[list[str]]:
    """The URLs of the servers that are measured."""
    if options.url:
        yield options.url
        return
    command = [sys.executable, "-m", "sdrpn", "serve", options.bundle, "--port", "0", "--log-format", "none"]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--max-batch", str(options.max_batch)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "listening on" in line:
                yield [line.split()[-1]]
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="with --url it may be left out; it says how many pictures are known")
    parser.add_argument("--url", nargs="+", help="servers that run")
    parser.add_argument(
        "--one-core", action="store_true", help="a replica has one core, which HTTP and opening pictures need as well"
    )
    parser.add_argument("--max-batch", type=int, default=4, help="questions at once of the server (default: 4)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pictures", type=int, default=8, help="to ask about (default: 8)")
    parser.add_argument("--tokens", type=int, default=24, help="length of an answer (default: 24)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="size of the pictures, in pixels")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.bundle is None and options.url is None:
        parser.error("name a bundle, or --url")
    with servers(options) as urls:
        wh = None if options.size is None else (options.size[0], options.size[1])
        found = asyncio.run(measured(urls, options.max_batch, options.pictures, options.tokens, wh))
    found["one_core"] = options.one_core
    if options.bundle is not None:
        found["pictures"] = max(1, plan_memory(options.bundle).prefixes.pictures)
    found = {"format_version": 1, **found}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
