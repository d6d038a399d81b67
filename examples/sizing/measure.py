"""Times of one replica for simulate.py, measured at a running server, or at one that it starts.

    python examples/sizing/measure.py bundle --threads 1 --out times.json
    python examples/sizing/measure.py --url http://127.0.0.1:8000 --max-batch 4 --pictures 12 --out times.json

It asks about rendered scenes that the server has not seen, and about the same again, alone; then as many known ones at
once as the server decodes together, whose decode steps it reports. The server must have nothing else to do. All times
are medians.
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


async def measured(url: str, batch: int, pictures: int, tokens: int, wh: tuple[int, int] | None) -> dict[str, Any]:
    """What simulate.py reads, but for how many pictures are known at once."""
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=url, timeout=600, headers=headers) as client:
        await alone(client, picture_urls(1, 1, wh))  # what is loaded when it is first used
        urls = picture_urls(pictures, int(time.time()), wh)
        first, beside = await alone(client, urls)
        known, beside_known = [], list[float]()
        for each in urls:  # again, at once: only the newest are certain to be known
            await alone(client, [each])
            again = await alone(client, [each])
            known += again[0]
            beside_known += again[1]
        step_s = []
        for count in range(1, batch + 1):
            own = urls[-count:]
            await alone(client, own)
            found = await steps(client, own, tokens)
            if not found:
                raise SystemExit("answers have one token: their decode steps cannot be measured")
            step_s.append(statistics.median(found))
    return {
        "first_s": statistics.median(first),
        "known_s": statistics.median(known),
        "step_s": step_s,
        "beside_s": statistics.median([*beside, *beside_known]),
    }


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """The URL of the server that is measured."""
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
                yield line.split()[-1]
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="with --url it may be left out; it says how many pictures are known")
    parser.add_argument("--url", help="a server that runs")
    parser.add_argument("--max-batch", type=int, default=4, help="questions at once of the server (default: 4)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pictures", type=int, default=8, help="to ask about (default: 8)")
    parser.add_argument("--tokens", type=int, default=24, help="length of an answer (default: 24)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="size of the pictures, in pixels")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.bundle is None and options.url is None:
        parser.error("name a bundle, or --url")
    with server(options) as url:
        wh = None if options.size is None else (options.size[0], options.size[1])
        found = asyncio.run(measured(url, options.max_batch, options.pictures, options.tokens, wh))
    if options.bundle is not None:
        found["pictures"] = max(1, plan_memory(options.bundle).prefixes.pictures)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
