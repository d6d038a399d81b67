"""Several pictures in a request, in one message or in several: what a session answers, as the family allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.runtime import Session
from sdrpn.runtime.questions import AnswerOptions
from sdrpn.runtime.server import ServerOptions
from sdrpn.text.turns import Turn
from tests.families.qwen.bundles import qwen_bundle
from tests.runtime.server.serving import Server, data_url, png_of, serving

FIRST, SECOND = "what is it?", "and what does this one say?"


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    return Image.fromarray(small).resize((250, 180), Image.Resampling.BILINEAR)


PICTURES = [picture(seed) for seed in range(3)]


def url(image: Image.Image) -> str:
    return data_url(png_of(image))


def said(text: str, *images: Image.Image, role: str = "user") -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": url(image)}} for image in images]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that takes several pictures."""
    bundle = qwen_bundle("q-zoom-3", tmp_path_factory.mktemp("served"))
    options = ServerOptions(model="qwen", most_images=3)
    with Session.open(bundle, threads=1) as session, serving(session, options) as running:
        yield running


def asked(server: Server, *messages: dict[str, Any], **entries: Any) -> dict[str, Any]:
    reply = server.post("/v1/chat/completions", {"messages": list(messages), "max_tokens": 3, **entries})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_two_pictures_in_a_message(server: Server) -> None:
    reply = asked(server, said(FIRST, *PICTURES[:2]))
    expected = server.session.answer(PICTURES[:2], FIRST, max_new_tokens=3)
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["prompt_tokens"] == expected.tokens.prompt
    assert reply["sdrpn"]["note"] == expected.note == "one look: the question shows 2 pictures"
    assert (reply["sdrpn"]["boxes"], reply["sdrpn"]["map"], reply["sdrpn"]["image_wh"]) == ([], None, None)


@pytest.mark.parametrize("shown", [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2)])
def test_pictures_in_earlier_turns(server: Server, shown: tuple[int, int]) -> None:
    images = PICTURES[: sum(shown)]
    messages = [said(FIRST, *images[: shown[0]]), said("a sign", role="assistant"), said(SECOND, *images[shown[0] :])]
    reply = asked(server, {"role": "system", "content": "Be brief."}, *messages)
    turns = (
        Turn("system", "Be brief."),
        Turn("user", FIRST, images=shown[0]),
        Turn("assistant", "a sign"),
        Turn("user", SECOND, images=shown[1]),
    )
    options = AnswerOptions(max_new_tokens=3, turns=turns)
    expected = asyncio.run(server.session.stream_with(images, SECOND, options).finish())
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["prompt_tokens"] == expected.tokens.prompt + expected.tokens.roi
    assert bool(reply["sdrpn"]["note"]) is (len(images) != 1)


def test_a_stream_with_two_pictures(server: Server) -> None:
    expected = server.session.answer(PICTURES[:2], FIRST, max_new_tokens=3).text
    body = {"messages": [said(FIRST, *PICTURES[:2])], "max_tokens": 3, "stream": True}
    *events, done = server.post("/v1/chat/completions", body).text.removesuffix("\n\n").split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected
    assert chunks[-1]["sdrpn"]["note"].startswith("one look")
    assert done == "data: [DONE]"


def test_one_of_two_is_known(server: Server) -> None:
    """The prefix is the first picture: a second question about it and another picture computes the other one alone."""
    server.session.forget_image()
    first = asked(server, said(FIRST, PICTURES[0]), roi={"enabled": False})
    second = asked(server, said(FIRST, PICTURES[0], PICTURES[2]))
    known = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < known <= first["usage"]["prompt_tokens"]


def test_by_responses(server: Server) -> None:
    content = [{"type": "input_image", "image_url": url(image)} for image in PICTURES[:2]]
    question = {"role": "user", "content": [*content, {"type": "input_text", "text": FIRST}]}
    reply = server.post("/v1/responses", {"input": [question], "max_output_tokens": 3}).json()
    expected = server.session.answer(PICTURES[:2], FIRST, max_new_tokens=3)
    assert reply["output"][0]["content"][0]["text"] == expected.text


@pytest.mark.parametrize(
    ("messages", "entries", "message"),
    [
        ([said(FIRST, *PICTURES, PICTURES[0])], {}, "the messages have 4 pictures; the limit is 3"),
        ([said(FIRST, *PICTURES[:2])], {"region": [1, 1, 9, 9]}, "there are 2 pictures; one alone is looked at again"),
        ([said(FIRST), said("so", PICTURES[0], role="assistant"), said(SECOND)], {}, "only the user shows pictures"),
        ([said(FIRST, *PICTURES[:2])], {"roi": {"enabled": True}}, "one alone is looked at again"),
    ],
)
def test_what_is_refused(server: Server, messages: list[Any], entries: dict[str, Any], message: str) -> None:
    reply = server.post("/v1/chat/completions", {"messages": messages, **entries})
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_each_picture_is_read(server: Server) -> None:
    broken = said(FIRST, PICTURES[0])
    broken["content"].insert(1, {"type": "image_url", "image_url": {"url": data_url(b"no picture")}})
    reply = server.post("/v1/chat/completions", {"messages": [broken]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image")
