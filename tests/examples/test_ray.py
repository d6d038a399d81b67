"""examples/ray on this machine, with two replicas on its CPU. Skipped where Ray is not installed (the extra ray)."""

from __future__ import annotations

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from sdrpn.runtime import Session
from sdrpn.tags import tag_samples
from tests.limits import killing_after
from tests.runtime.server.serving import chat_body, data_url
from tests.sources import ROOT

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
QUESTION = "what is the code on the yellow tag ?"
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
MOST_S = 240.0  # to wait for anything


@dataclass
class Picture:
    path: Path
    expected: Any  # what a session answers
    cached: int  # tokens that are known when it is asked again

    @property
    def url(self) -> str:
        return data_url(self.path.read_bytes())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    folder, found = tmp_path_factory.mktemp("pictures"), []
    with Session.open("demo", threads=1) as session:
        for number, sample in enumerate(tag_samples("heldout", 8, 3)):
            path = folder / f"{number}.png"
            sample.image.save(path)
            expected = session.answer(path, QUESTION)
            found.append(Picture(path, expected, session.answer(path, QUESTION).tokens.cached))
    return found


def descendants(of: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = list[int](), [of]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """As if the power went: the process and all that it started."""
    for each in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait(60)
    if process.stderr is not None:
        process.stderr.close()


@contextlib.contextmanager
def started(port: int) -> Iterator[list[str]]:
    """What a rack of two replicas printed until it listened, or ended."""
    command = [sys.executable, str(ROOT / "examples" / "ray" / "rack.py"), "demo", "--replicas", "2", "--threads", "1"]
    command += ["--port", str(port), "--max-queue", "4", "--health-every-s", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    said = []
    try:
        with killing_after(process):
            for line in process.stderr:
                said.append(line)
                if "listening on" in line:
                    break
        with ThreadPoolExecutor(1) as reading:  # what it prints later must not block it
            reading.submit(process.stderr.read)
            yield said
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(60) == 0
            finally:
                kill(process)
    finally:
        kill(process)
        process.stderr.close()


@pytest.fixture(scope="module")
def rack() -> Iterator[str]:
    """The URL of two replicas. Ray gives its own processes 30 s, which a busy machine may need twice."""
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with contextlib.ExitStack() as running:
            said = running.enter_context(started(port))
            if said and "listening on" in said[-1]:
                yield f"http://127.0.0.1:{port}"
                return
    pytest.fail("".join(said))


def ask(url: str, picture: Picture, **entries: Any) -> httpx.Response:
    body = chat_body(picture.url, QUESTION, **entries)
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def counted(url: str, name: str) -> dict[str, float]:
    """A counter by replica."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    found = re.findall(rf'^{name}\{{replica="(\w+)".*\}} (.*)$', page, re.MULTILINE)
    return {replica: float(value) for replica, value in found}


def test_answers_are_those_of_one_session_and_pictures_are_known_again(rack: str, pictures: list[Picture]) -> None:
    for picture in pictures:
        reply = ask(rack, picture).json()
        assert reply["choices"][0]["message"]["content"] == picture.expected.text
        assert reply["usage"]["completion_tokens"] == picture.expected.tokens.generated
        boxes = [tuple(box["xyxy_px"]) for box in reply["sdrpn"]["boxes"]]
        assert boxes == list(picture.expected.boxes_xyxy_px)
    queries = counted(rack, "vllm:prefix_cache_queries_total")
    assert len(queries) == 2
    assert min(queries.values()) > 0, "one replica got every picture"
    for picture in reversed(pictures):
        details = ask(rack, picture).json()["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] == picture.cached > 0


def test_streams(rack: str, pictures: list[Picture]) -> None:
    with httpx.stream(
        "POST", f"{rack}/v1/chat/completions", json=chat_body(pictures[0].url, QUESTION, stream=True), timeout=120
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == pictures[0].expected.text
    assert len(chunks) > 2


def test_errors_and_state_pass_through(rack: str, pictures: list[Picture]) -> None:
    assert httpx.get(f"{rack}/readyz", timeout=60).text == "ok\n"
    assert httpx.get(f"{rack}/healthz", timeout=60).status_code == 200
    wrong = httpx.post(f"{rack}/v1/chat/completions", json={"messages": []}, timeout=60)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "messages")
    other = ask(rack, pictures[0], model="another")
    assert other.json()["error"]["code"] == "model_not_found"


def test_what_finds_no_place_is_refused(rack: str, pictures: list[Picture]) -> None:
    """Two replicas take ten each, and four wait at the door."""

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=80)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            url, body = f"{rack}/v1/chat/completions", chat_body(pictures[0].url, QUESTION)
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(80)))

    replies = asyncio.run(all_at_once())
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    answers = {reply.json()["choices"][0]["message"]["content"] for reply in replies if reply.status_code == 200}
    assert answers == {pictures[0].expected.text}


def test_a_replica_that_is_killed_loses_nothing(rack: str, pictures: list[Picture]) -> None:
    before = set(counted(rack, "vllm:generation_tokens_total"))
    processes = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            processes[int(folder.name)] = (folder / "cmdline").read_bytes()
    replicas = [pid for pid, line in processes.items() if line.startswith(b"ray::ServeReplica:sdrpn:Replica")]
    killed, deadline = False, time.monotonic() + MOST_S

    def answered(picture: Picture) -> str:
        for _ in range(20):
            reply = ask(rack, picture)
            if reply.status_code == 200:
                text: str = reply.json()["choices"][0]["message"]["content"]
                return text
            assert reply.status_code in (429, 503)
            time.sleep(float(reply.headers["retry-after"]))
        return "nothing"

    with ThreadPoolExecutor(6) as threads:
        asked = [(picture, threads.submit(answered, picture)) for _ in range(6) for picture in pictures]
        for number, (picture, reply) in enumerate(asked):
            assert reply.result(MOST_S) == picture.expected.text
            if number == 6 and not killed:
                os.kill(replicas[0], signal.SIGKILL)
                killed = True
    while True:  # Ray starts another one
        with contextlib.suppress(httpx.HTTPError):
            now = set(counted(rack, "vllm:generation_tokens_total"))
            if len(now) == 2 and now != before:
                return
        assert time.monotonic() < deadline
        time.sleep(0.5)


def batch(out: Path, source: Path, *options: str) -> subprocess.Popen[str]:
    script = str(ROOT / "examples" / "ray" / "batch.py")
    command = [sys.executable, script, "answer", "demo", str(source), "--out", str(out), "--rows-per-file", "1"]
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_a_batch_that_was_killed_goes_on(pictures: list[Picture], tmp_path: Path) -> None:
    source, out = pictures[0].path.parent, tmp_path / "out"
    options = ("--question", QUESTION, "--replicas", "2")
    first, deadline = batch(out, source, *options), time.monotonic() + MOST_S
    while not list(out.glob("part-*.parquet")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill(first)
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 0 < len(there) < len(pictures)
    second = batch(out, source, *options)
    said = second.communicate(timeout=MOST_S)[1]
    assert second.returncode == 0, said
    assert f"{len(there)} of 8 parts were there; {8 - len(there)} rows, 0 with an error" in said
    assert all((out / name).stat().st_mtime_ns == written for name, written in there.items())
    rows = pq.read_table(out).to_pylist()
    assert sorted(row["id"] for row in rows) == [picture.path.name for picture in pictures]
    by_id = {row["id"]: row for row in rows}
    for picture in pictures:
        row = by_id[picture.path.name]
        assert (row["answer"], row["error"]) == (picture.expected.text, None)
        assert tuple(row["token_ids"]) == picture.expected.token_ids
        assert [tuple(box) for box in row["boxes_xyxy_px"]] == list(picture.expected.boxes_xyxy_px)
