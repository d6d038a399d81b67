"""What examples/ray does without Ray: which picture a request is about, replies through processes, joined figures."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pyarrow
import pyarrow.parquet
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sdrpn import BadInput
from tests.scripts import script_module
from tests.sources import ROOT


def example(name: str) -> ModuleType:
    """A module of the example, which is not a package."""
    return script_module(f"examples/ray/{name}.py")


def digest(body: object) -> str | None:
    found: str | None = example("routing").picture_digest(json.dumps(body).encode())
    return found


def chat(*urls: str, text: str = "what ?") -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]}


class TestRouting:
    def test_the_same_picture_in_every_interface(self) -> None:
        url = "data:image/png;base64,AAAA"
        turns = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        bodies = [chat(url), chat(url, text="and ?"), {"image": url}, {"image": {"url": url}}, {"input": turns}]
        found = {digest(body) for body in bodies}
        assert len(found) == 1
        assert len(next(iter(found)) or "") == 32

    def test_another_picture_and_the_first_of_several(self) -> None:
        assert digest(chat("data:a")) != digest(chat("data:b"))
        assert digest(chat("data:a", "data:b")) == digest(chat("data:a", "data:c"))

    @pytest.mark.parametrize(
        "body",
        [
            None,
            [],
            {},
            {"messages": None},
            {"messages": ["?"]},
            {"messages": [{"content": "text"}]},
            {"messages": [{"content": [{"image_url": 3}, 4]}]},
            {"image": ["x"]},
            {"input": "text"},
        ],
    )
    def test_without_a_picture(self, body: object) -> None:
        assert digest(body) is None

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
    def test_what_is_not_json(self, body: bytes) -> None:
        assert example("routing").picture_digest(body) is None


Receive: TypeAlias = Any
Send: TypeAlias = Any
HEADERS = ((b"host", b"127.0.0.1"),)


def head(path: str = "/x") -> Any:
    return example("relay").Head("POST", path, b"a=1", HEADERS, ("127.0.0.1", 1), ("127.0.0.1", 2))


def collected(app: Any, body: bytes = b"body", stop_after: int | None = None) -> list[Any]:
    async def run() -> list[Any]:
        found: list[Any] = []
        pieces: AsyncGenerator[Any, None] = example("relay").replies(app, head(), body)
        async for piece in pieces:
            found.append(piece)
            if len(found) == stop_after:
                await pieces.aclose()
                break
        return found

    return asyncio.run(asyncio.wait_for(run(), 30))


class TestRelay:
    def test_a_request_and_its_reply(self) -> None:
        seen: dict[str, Any] = {}

        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            seen.update(scope, message=await receive())
            kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 201, "headers": kind})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await send({"type": "http.response.body", "body": b"two", "more_body": False})

        first, *rest = collected(app)
        assert (first.status, first.is_stream, rest) == (201, True, [b"one", b"two"])
        assert seen["message"] == {"type": "http.request", "body": b"body", "more_body": False}
        assert (seen["method"], seen["path"], seen["query_string"]) == ("POST", "/x", b"a=1")
        assert dict(seen["headers"]) == {b"host": b"127.0.0.1", b"content-length": b"4"}

    def test_a_client_that_goes_away(self) -> None:
        ended = []

        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):  # more than anybody takes
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            ended.append((await receive())["type"])

        assert len(collected(app, stop_after=2)) == 2
        assert ended == ["http.disconnect"]

    def test_an_error_of_the_application(self) -> None:
        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            collected(app)

    def test_whole_replies(self) -> None:
        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for part in (b"a", b"b"):
                await send({"type": "http.response.body", "body": part, "more_body": True})

        first, content = asyncio.run(example("relay").whole_reply(app, head(), b""))
        assert (first.status, content) == (200, b"ab")

    def test_what_belongs_to_the_connection_stays(self) -> None:
        scope = {
            "method": "GET",
            "path": "/",
            "headers": [(b"Connection", b"close"), (b"content-length", b"7"), (b"authorization", b"Bearer x")],
        }
        assert example("relay").head_of(scope).headers == ((b"authorization", b"Bearer x"),)


def test_figures_of_several_replicas() -> None:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

    pages = {}
    for name, count in (("one", 3), ("two", 5)):
        registry = CollectorRegistry()
        Counter("sdrpn:a", "A.", ("model_name",), registry=registry).labels('x"}y').inc(count)
        Counter("sdrpn:plain", "P.", registry=registry).inc(count)
        Histogram("sdrpn:b", "B.", registry=registry, buckets=(1.0,)).observe(0.5)
        pages[name] = generate_latest(registry).decode()
    families = {
        family.name: family for family in text_string_to_metric_families(example("figures").joined_figures(pages))
    }
    found = {
        sample.labels["replica"]: sample.value for sample in families["sdrpn:a"].samples if "_total" in sample.name
    }
    assert found == {"one": 3, "two": 5}
    assert families["sdrpn:a"].samples[0].labels["model_name"] == 'x"}y'
    assert families["sdrpn:b"].type == "histogram"
    assert len(families["sdrpn:b"].samples) == 2 * (2 + 2)
    assert {sample.labels["replica"] for sample in families["sdrpn:plain"].samples} == {"one", "two"}


QUESTIONS = pyarrow.schema([("id", pyarrow.string()), ("image", pyarrow.binary()), ("question", pyarrow.string())])


def write_rows(path: Path, count: int, group: int) -> None:
    rows = [{"id": f"{path.stem}-{number}", "image": b"x", "question": f"q{number}"} for number in range(count)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=QUESTIONS), path, row_group_size=group)


class TestParts:
    def test_rows_of_parquet_are_in_one_part_each(self, tmp_path: Path) -> None:
        parts = example("parts")
        write_rows(tmp_path / "a.parquet", 10, 4)
        write_rows(tmp_path / "b.parquet", 3, 2)
        found = parts.parts_of(tmp_path, 3)
        assert [part.count for part in found] == [3, 3, 3, 1, 3]
        assert [part.number for part in found] == [0, 1, 2, 3, 4]
        rows = [row for part in found for row in parts.rows_of(part)]
        assert [row["id"] for row in rows] == [f"a-{n}" for n in range(10)] + [f"b-{n}" for n in range(3)]
        assert rows[4] == {"id": "a-4", "image": b"x", "question": "q4"}

    def test_a_folder_of_pictures(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        for name in ("b.png", "deep/a.JPG", "notes.txt"):
            (tmp_path / name).write_bytes(b"")
        (part,) = example("parts").parts_of(tmp_path, 5)
        rows = example("parts").rows_of(part)
        assert [row["id"] for row in rows] == ["b.png", "deep/a.JPG"]
        assert Path(rows[1]["image"]).is_file()

    def test_what_is_no_input(self, tmp_path: Path) -> None:
        parts_of = example("parts").parts_of
        with pytest.raises(BadInput, match="has neither pictures nor Parquet files"):
            parts_of(tmp_path, 1)
        with pytest.raises(BadInput, match="does not exist"):
            parts_of(tmp_path / "none", 1)
        pyarrow.parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "x.parquet")
        with pytest.raises(BadInput, match="has no column image; expected id, image and question"):
            parts_of(tmp_path, 1)
        (tmp_path / "x.parquet").write_bytes(b"no")
        with pytest.raises(BadInput, match="cannot be read as Parquet"):
            parts_of(tmp_path, 1)

    def test_a_job_goes_on_with_what_is_left(self, tmp_path: Path) -> None:
        parts = example("parts")
        write_rows(tmp_path / "a.parquet", 4, 4)
        found, out = parts.parts_of(tmp_path / "a.parquet", 1), tmp_path / "out"
        assert parts.begin(out, found, {"what": "look"}) == found
        schema = pyarrow.schema([("id", pyarrow.string())])
        parts.write_part(found[2], out, [{"id": "a-2"}], schema)
        assert [part.number for part in parts.begin(out, found, {"what": "look"})] == [0, 1, 3]
        assert pyarrow.parquet.read_table(out).to_pylist() == [{"id": "a-2"}]
        with pytest.raises(BadInput, match=r"was started with other settings \(what\); name a new folder"):
            parts.begin(out, found, {"what": "answer"})
        with pytest.raises(BadInput, match="rows_sha256"):
            parts.begin(out, found[:3], {"what": "look"})
        with pytest.raises(BadInput, match="exists and has no job to go on with"):
            parts.begin(tmp_path, found, {"what": "look"})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize("name", ["batch", "label", "rack"])
def test_without_ray_a_script_says_so_in_one_line(name: str) -> None:
    script = ROOT / "examples" / "ray" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ray is not installed, which this example needs: pip install 'sdrpn[ray]'\n"
