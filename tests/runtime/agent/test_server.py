"""The tools through the official client, in this process: results, pictures, schemas, and errors of one line."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from mcp.client import Client
from mcp.server import MCPServer
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from sdrpn.errors import RunFailed
from sdrpn.families.look_settings import LookSettings
from sdrpn.images.image_root import ImageRoot
from sdrpn.method.policy import OWN, RoiChange
from sdrpn.runtime import Session
from sdrpn.runtime.agent.server import agent_server
from sdrpn.runtime.agent.tools import PictureTools, encoded
from sdrpn.tags import shipped_scene
from tests.families.qwen.bundles import qwen_bundle

SCENE = shipped_scene()
NAME = "scene.png"
QUESTIONS = ["what is the code on the yellow tag ?", "what is the code on the blue tag ?"]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session.open("demo", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copy(SCENE.picture, folder / NAME)
    (folder / "notes.txt").write_text("no picture", "utf-8")
    (folder / "cut.png").write_bytes(SCENE.picture.read_bytes()[:2000])
    (folder / "away.png").symlink_to(SCENE.picture)
    return folder


@pytest.fixture(scope="module")
def server(session: Session, root: Path) -> MCPServer[Any]:
    return agent_server(PictureTools(session, ImageRoot(root)), version="1")


def call(server: MCPServer[Any], tool: str, **arguments: Any) -> CallToolResult:
    async def calling() -> CallToolResult:
        async with Client(server) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(calling())


def found(result: CallToolResult) -> dict[str, Any]:
    """The typed result, which the text repeats for clients that read no types."""
    assert not result.is_error
    text = result.content[0]
    assert isinstance(text, TextContent)
    assert json.loads(text.text) == result.structured_content
    assert result.structured_content is not None
    typed: dict[str, Any] = result.structured_content
    return typed


def pictures(result: CallToolResult) -> list[Image.Image]:
    opened: list[Image.Image] = []
    for content in result.content[1:]:
        assert isinstance(content, ImageContent)
        picture = Image.open(io.BytesIO(base64.b64decode(content.data)))
        assert content.mime_type == f"image/{(picture.format or '').lower()}"
        opened.append(picture)
    return opened


def refusal(result: CallToolResult) -> str:
    assert result.is_error
    (text,) = result.content
    assert isinstance(text, TextContent)
    assert "\n" not in text.text
    return text.text


def test_the_tools_say_what_they_take_and_return(server: MCPServer[Any]) -> None:
    async def listing() -> Any:
        async with Client(server) as client:
            return client.instructions, (await client.list_tools()).tools

    instructions, tools = asyncio.run(listing())
    assert {tool.name for tool in tools} == {"look", "ask", "crop"}
    assert all(f"`{tool.name}`" in instructions for tool in tools)
    for tool in tools:
        assert tool.description
        assert tool.annotations.read_only_hint
        Draft202012Validator.check_schema(tool.input_schema)
        Draft202012Validator.check_schema(tool.output_schema)
        for name, taken in tool.input_schema["properties"].items():
            assert taken.get("description"), f"{tool.name}: {name}"


def test_look_is_that_of_the_session(server: MCPServer[Any], session: Session) -> None:
    result = call(server, "look", image=NAME, questions=QUESTIONS)
    looked = found(result)
    expected = session.look_many(SCENE.picture, QUESTIONS)
    assert looked["image_wh"] == [*expected[0].image_wh]
    for mine, look in zip(looked["looks"], expected, strict=True):
        assert mine["question"] == look.question
        assert [tuple(region["box_xyxy_px"]) for region in mine["regions"]] == list(look.boxes_xyxy_px)
        for region, box in zip(mine["regions"], look.boxes, strict=True):
            assert region["score_max"] == round(box.score_max, 4)
    assert [picture.size for picture in pictures(result)] == [look.overlay().size for look in expected]


def test_look_with_another_threshold_and_crops(server: MCPServer[Any], session: Session) -> None:
    result = call(server, "look", image=NAME, questions=QUESTIONS[:1], threshold=0.15, show="crops")
    look = session.look(SCENE.picture, QUESTIONS[0], roi=0.15)
    assert [tuple(box["box_xyxy_px"]) for box in found(result)["looks"][0]["regions"]] == list(look.boxes_xyxy_px)
    (crop,) = pictures(result)
    assert crop.tobytes() == look.crop(0).tobytes()


def test_a_model_whose_pictures_have_a_budget(tmp_path: Path, root: Path) -> None:
    with Session.open(qwen_bundle("q-zoom-3", tmp_path), threads=1) as session:
        server = agent_server(PictureTools(session, ImageRoot(root)), version="1")
        asked = {"image": NAME, "question": QUESTIONS[0], "max_new_tokens": 3, "image_tokens": (4, 24)}
        settings = LookSettings(OWN, "document", (4, 24)).settled(session.spec)
        expected = session.answer(SCENE.picture, QUESTIONS[0], roi=settings.roi, max_new_tokens=3, image_tokens=(4, 24))
        assert found(call(server, "ask", preset="document", **asked))["text"] == expected.text
        region = found(call(server, "ask", region=(10, 20, 200, 150), **asked))
        assert len(region["boxes_xyxy_px"]) == 1
        looked = found(call(server, "look", image=NAME, questions=QUESTIONS[:1], image_tokens=(4, 24), threshold=0.01))
        look = session.look(SCENE.picture, QUESTIONS[0], roi=0.01, image_tokens=(4, 24))
        assert [tuple(box["box_xyxy_px"]) for box in looked["looks"][0]["regions"]] == list(look.boxes_xyxy_px)
        short = {"image": NAME, "questions": QUESTIONS[:1]}
        assert "expected 4 <= least <= most" in refusal(call(server, "look", image_tokens=(9, 5), **short))
        assert "this bundle has 2048 positions" in refusal(call(server, "look", preset="search", **short))


def test_nothing_is_found(server: MCPServer[Any]) -> None:
    result = call(server, "look", image=NAME, questions=QUESTIONS[:1], threshold=0.9, show="none")
    look = found(result)["looks"][0]
    assert (look["regions"], look["ignored"]) == ([], [])
    assert "no cell is above 0.9" in look["note"]
    assert len(result.content) == 1


def test_a_region_that_is_left_out(server: MCPServer[Any], session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    small, looking = RoiChange(max_share=0.001), session.look_many_async
    monkeypatch.setattr(
        session, "look_many_async", lambda image, questions, **look: looking(image, questions, **look | {"roi": small})
    )
    looks = found(call(server, "look", image=NAME, questions=QUESTIONS, show="none"))["looks"]
    for look, expected in zip(looks, session.look_many(SCENE.picture, QUESTIONS, roi=small), strict=True):
        assert look["regions"] == []
        (region,) = look["ignored"]
        assert tuple(region["box_xyxy_px"]) == expected.dropped[0].xyxy_px
        assert region["reason"] == expected.dropped[0].reason


def test_ask(server: MCPServer[Any], session: Session) -> None:
    result = call(server, "ask", image=NAME, question=SCENE.question)
    answer = session.answer(SCENE.picture, SCENE.question)
    assert found(result)["text"] == answer.text == SCENE.expected
    assert [tuple(box) for box in found(result)["boxes_xyxy_px"]] == list(answer.boxes_xyxy_px)
    assert pictures(result) == []


def test_ask_about_a_region(server: MCPServer[Any]) -> None:
    """Where the tag lies, and where nothing does: the answer is that of the region."""
    box = list(SCENE.box_xyxy_px)
    result = call(server, "ask", image=NAME, question=SCENE.question, region=box, show="crops")
    assert (found(result)["text"], found(result)["boxes_xyxy_px"]) == (SCENE.expected, [box])
    assert pictures(result)[0].size == (box[2] - box[0], box[3] - box[1])
    elsewhere = found(call(server, "ask", image=NAME, question=SCENE.question, region=[0, 0, 60, 60]))
    assert elsewhere["boxes_xyxy_px"] == [[0, 0, 60, 60]]
    assert elsewhere["text"] != SCENE.expected


@pytest.mark.parametrize("show", ["crops", "overlay"])
def test_ask_with_a_picture(server: MCPServer[Any], show: str) -> None:
    result = call(server, "ask", image=NAME, question=SCENE.question, show=show, max_new_tokens=1)
    assert found(result)["finish_reason"] == "length"
    (picture,) = pictures(result)
    x1, y1, x2, y2 = found(result)["boxes_xyxy_px"][0]
    if show == "crops":
        assert picture.size == (x2 - x1, y2 - y1)
    else:
        assert picture.width > 600


def test_crop_is_exact(server: MCPServer[Any]) -> None:
    result = call(server, "crop", image=NAME, box=[10, 20, 210, 120])
    assert found(result) == {
        "image": NAME,
        "image_wh": [840, 840],
        "box_xyxy_px": [10, 20, 210, 120],
        "returned_wh": [200, 100],
    }
    (picture,) = pictures(result)
    with Image.open(SCENE.picture) as whole:
        assert picture.tobytes() == whole.convert("RGB").crop((10, 20, 210, 120)).tobytes()


def test_crop_with_a_margin_ends_at_the_border(server: MCPServer[Any]) -> None:
    result = call(server, "crop", image=NAME, box=[10, 400, 210, 500], margin=0.5, max_side_px=150)
    assert found(result)["box_xyxy_px"] == [0, 350, 310, 550]
    assert found(result)["returned_wh"] == [150, 97]
    assert pictures(result)[0].size == (150, 97)


def test_a_large_picture_is_sent_as_jpeg() -> None:
    noise = Image.effect_noise((1200, 1200), 90).convert("RGB")
    assert encoded(noise).mime_type == "image/jpeg"
    assert encoded(noise.resize((100, 100))).mime_type == "image/png"


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("look", {"image": "../scene.png"}, "'../scene.png' leads out of the image root; expected a path below it"),
        ("look", {"image": "away.png"}, "'away.png' leads out of the image root"),
        ("look", {"image": "scen.png"}, "'scen.png' does not exist below the image root; did you mean scene.png?"),
        ("look", {"image": "notes.txt"}, "the image is not a picture that can be read; expected one of JPEG, PNG"),
        ("ask", {"image": "cut.png"}, "the image cannot be decoded: damaged or cut off"),
        ("ask", {"image": NAME, "question": "a " * 2000}, "positions"),
        ("ask", {"image": NAME, "max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1"),
        ("ask", {"image": NAME, "region": [0, 0, 900, 9]}, "the region is [0, 0, 900, 9]; expected x1, y1, x2, y2"),
        ("look", {"image": NAME, "questions": []}, "questions: List should have at least 1 item"),
        ("look", {"image": NAME, "questions": ["a"] * 17}, "questions: List should have at most 16 items"),
        ("look", {"image": NAME, "threshold": "much"}, "threshold: Input should be a valid number"),
        ("look", {"image": NAME, "threshold": 0}, "threshold is 0.0; expected a number between 0 and 1"),
        ("look", {}, "image: Field required"),
        (
            "crop",
            {"image": NAME, "box": [0, 0, 841, 10]},
            "the region is [0, 0, 841, 10]; expected x1, y1, x2",
        ),
        ("crop", {"image": NAME, "box": [5, 5, 5, 10]}, "inside the picture of 840x840 pixels"),
        ("crop", {"image": NAME, "box": [0, 0, 1]}, "box.3: Field required"),
        ("draw", {}, "Unknown tool: draw"),
    ],
)
def test_errors_are_one_line(server: MCPServer[Any], tool: str, arguments: dict[str, Any], message: str) -> None:
    usual: dict[str, dict[str, Any]] = {"look": {"questions": ["what ?"]}, "ask": {"question": "what ?"}}
    assert message in refusal(call(server, tool, **(usual.get(tool, {}) | arguments)))


def test_a_crash_says_nothing_of_itself(
    server: MCPServer[Any], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object, **named: object) -> None:
        raise OSError("/home/somebody/secret")

    monkeypatch.setattr(session, "look_many_async", crash)
    assert refusal(call(server, "look", image=NAME, questions=["what ?"])) == "Error executing tool look"


def test_a_failed_graph_is_reported(server: MCPServer[Any], session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RunFailed("the graph failed;\ntry again")

    monkeypatch.setattr(session, "look_many_async", fail)
    assert refusal(call(server, "look", image=NAME, questions=["what ?"])) == "the graph failed; try again"


def test_calls_overlap(server: MCPServer[Any], session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is free while pictures are read: both calls meet there."""
    meeting = threading.Barrier(2, timeout=30)
    open_picture = session.open_picture

    def meet(*arguments: Any) -> Any:
        meeting.wait()
        return open_picture(*arguments)

    monkeypatch.setattr(session, "open_picture", meet)

    async def both() -> list[CallToolResult]:
        async with Client(server) as client:
            calls = [client.call_tool("look", {"image": NAME, "questions": [text]}) for text in QUESTIONS]
            return list(await asyncio.gather(*calls))

    results = asyncio.run(both())
    assert [found(result)["looks"][0]["question"] for result in results] == QUESTIONS


def test_one_session_serves_several_clients(server: MCPServer[Any], session: Session) -> None:
    """Each with an event loop of its own."""
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda text: call(server, "ask", image=NAME, question=text), QUESTIONS * 3))
    expected = [session.answer(SCENE.picture, text).text for text in QUESTIONS]
    assert [found(result)["text"] for result in results] == expected * 3
