"""Replies of the endpoints, compared with what the session itself answers; and what is refused."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.runtime.server.answering import change_of
from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.requests import RoiOptions
from sdrpn.tags import shipped_scene
from tests.runtime.server.serving import QUESTION, Server, chat_body, data_url, scene_url, serving

SCENE = shipped_scene()
OTHER = "what is the code on the red tag ?"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = ServerOptions(model="demo", most_pixels=1_000_000, most_new_tokens=64)
    with Session.open("demo", threads=1) as session, serving(session, options) as running:
        yield running


def refusal(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return dict(error)


class TestLook:
    @pytest.mark.parametrize("form", ["float16", "float32"])
    def test_it_finds_what_the_session_finds(self, server: Server, form: str) -> None:
        body = {"image": scene_url(), "questions": [QUESTION, OTHER], "map": form}
        reply = server.post("/v1/look", body).json()
        expected = server.session.look_many(SCENE.picture, [QUESTION, OTHER])
        assert (reply["object"], reply["model"], reply["fit"]) == ("look", "demo", "pad")
        assert reply["image_wh"] == list(expected[0].image_wh)
        assert reply["policy"]["threshold"] == server.session.policy.threshold
        for found, look in zip(reply["looks"], expected, strict=True):
            assert found["question"] == look.question
            assert found["boxes"] == [region.to_dict() for region in look.boxes]
            assert found["dropped"] == [region.to_dict() for region in look.dropped]
            numbers = np.dtype(form).newbyteorder("<")
            values = np.frombuffer(base64.b64decode(found["map"]["data"]), numbers).reshape(found["map"]["shape"])
            np.testing.assert_array_equal(values, look.roi_map.astype(form))
            assert found["sinks"] == []
        assert reply["looks"][0]["boxes"]
        assert reply["rules"] == {
            "regions": "each",
            "masked": False,
            "cells": {"kind": "square", "side_px": reply["input_side_px"]},
        }

    def test_a_map_as_png(self, server: Server) -> None:
        reply = server.post("/v1/look", {"image": {"url": scene_url()}, "question": QUESTION, "map": "png"}).json()
        found = reply["looks"][0]["map"]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["data"]))))
        expected = server.session.look(SCENE.picture, QUESTION).roi_map
        assert found["shape"] == list(pixels.shape)
        np.testing.assert_array_equal(pixels, np.rint(expected * 255).astype(np.uint8))

    def test_another_threshold(self, server: Server) -> None:
        body = {"image": scene_url(), "question": QUESTION, "roi": {"threshold": 0.99}}
        reply = server.post("/v1/look", body).json()
        assert reply["policy"]["threshold"] == 0.99
        assert reply["looks"][0]["boxes"] == []
        assert "above 0.99" in reply["looks"][0]["note"]

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"question": None}, "questions"),
            ({"questions": [QUESTION]}, "questions"),
            ({"questions": [QUESTION] * 17, "question": None}, "questions"),
            ({"roi": {"enabled": False}}, "roi.enabled"),
            ({"roi": {"threshold": 2}}, None),
            ({"colour": "red"}, "colour"),
            ({"Colour": "red"}, "Colour"),
            ({"image": {"url": "x", "detail": "huge"}}, "image.detail"),
            ({"image": {"url": 5}}, "image.url"),
            ({"image": 5}, "image"),
        ],
    )
    def test_what_is_refused(self, server: Server, change: dict[str, Any], param: str | None) -> None:
        body = {"image": scene_url(), "question": QUESTION} | change
        assert refusal(server.post("/v1/look", body), 400)["param"] == param


def test_a_gate_s_threshold_needs_a_gate(text_bundle: Path) -> None:
    with Session.open(text_bundle, threads=1) as session:
        with pytest.raises(Fault) as caught:
            change_of(RoiOptions(gate_threshold=0.5), session)
        assert (caught.value.param, caught.value.status) == ("roi.gate_threshold", 400)
        assert change_of(RoiOptions(threshold=0.5), session).threshold == 0.5


class TestChat:
    def test_an_answer_with_its_regions(self, server: Server) -> None:
        server.session.forget_image()
        reply = server.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8)).json()
        expected = server.session.answer(SCENE.picture, QUESTION, max_new_tokens=8)
        (choice,) = reply["choices"]
        assert choice["message"]["content"] == expected.text == SCENE.expected
        assert choice["finish_reason"] == "stop"
        assert [box["xyxy_px"] for box in reply["sdrpn"]["boxes"]] == [list(box) for box in expected.boxes_xyxy_px]
        assert reply["sdrpn"]["map"] is None
        assert reply["sdrpn"]["stages"]["total_s"] > 0
        usage = reply["usage"]
        assert usage["completion_tokens"] == len(expected.token_ids)
        assert usage["prompt_tokens"] == expected.tokens.prompt + expected.tokens.roi
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}

    def test_a_second_question_finds_the_picture(self, server: Server) -> None:
        server.session.forget_image()
        server.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8))
        usage = server.post("/v1/chat/completions", chat_body(scene_url(), OTHER, max_tokens=8)).json()["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert 144 <= cached < usage["prompt_tokens"]

    def test_low_detail_is_one_look(self, server: Server) -> None:
        body = chat_body(scene_url(), max_tokens=8)
        body["messages"][0]["content"][0]["image_url"]["detail"] = "low"
        reply = server.post("/v1/chat/completions", body).json()
        assert (reply["sdrpn"]["boxes"], reply["sdrpn"]["roi_tokens"]) == ([], 0)

    def test_a_region_is_looked_at_instead(self, server: Server) -> None:
        region = list(SCENE.box_xyxy_px)
        reply = server.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8, region=region)).json()
        assert [box["xyxy_px"] for box in reply["sdrpn"]["boxes"]] == [region]

    @pytest.mark.parametrize(
        ("change", "status", "pattern"),
        [
            ({"model": "gpt-4"}, 404, "'gpt-4' is not here"),
            ({"n": 2}, 400, "n is 2"),
            ({"max_tokens": 65}, 400, "limit is 64"),
            ({"temperature": 3}, 400, "temperature"),
            ({"messages": []}, 400, "messages"),
            ({"messages": [{"role": "assistant", "content": "so"}]}, 400, "last message is the assistant's"),
            ({"messages": [{"role": "user", "content": "so"}], "region": [1, 1, 9, 9]}, 400, "there are 0 pictures"),
            ({"messages": chat_body(scene_url())["messages"] * 9}, 400, "the limit is 8"),
            ({"region": [5, 5, 5, 9]}, 400, "region"),
            ({"top_k": 5}, 400, "top_k"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
                400,
                "messages.0.content.0.image_url.url: Input should be a valid string",
            ),
            ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content: Input should be a valid"),
            ({"stop": ["a", 5]}, 400, "stop.1: Input should be a valid string"),
        ],
    )
    def test_what_is_refused(self, server: Server, change: dict[str, Any], status: int, pattern: str) -> None:
        reply = server.post("/v1/chat/completions", chat_body(scene_url()) | change)
        assert pattern in refusal(reply, status)["message"]


class TestPictures:
    @pytest.mark.parametrize(
        "url",
        [
            data_url(b"not a picture"),
            data_url(b""),
            "data:image/png,plain",
            "data:image/png;base64,****",
            "/etc/passwd",
        ],
    )
    def test_what_is_not_a_picture(self, server: Server, url: str) -> None:
        refusal(server.post("/v1/look", {"image": url, "question": QUESTION}), 400)

    def test_a_large_one_is_refused_with_the_size_that_fits(self, server: Server) -> None:
        file = io.BytesIO()
        Image.new("RGB", (4000, 1000)).save(file, "PNG")
        error = refusal(server.post("/v1/look", {"image": data_url(file.getvalue()), "question": QUESTION}), 413)
        assert error["code"] == "image_too_large"
        assert "2000x500" in error["message"]


def test_the_reference_is_a_page_of_its_own(server: Server) -> None:
    reply = server.get("/docs")
    assert "/v1/chat/completions" in reply.text
    assert "RoiOptions" in reply.text
    assert "<script" not in reply.text
    assert "http" not in reply.text.replace("POST /v1", "")
    assert "`" not in reply.text
    assert {"ErrorReply", "ErrorDetail"} <= {*re.findall(r'id="(\w+)"', reply.text)}
    assert "ValidationError" not in reply.text  # errors have OpenAI's shape, not FastAPI's
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_other_endpoints(server: Server) -> None:
    assert server.get("/healthz").text == server.get("/readyz").text == "ok\n"
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["demo"]
    refusal(server.get("/v1/nothing"), 404)
    refusal(server.get("/v1/look"), 405)


def test_a_body_that_is_not_json(server: Server) -> None:
    reply = server.send("/v1/look", b'{"image": ', {"content-type": "application/json"})
    error = refusal(reply, 400)
    assert error["message"].startswith("the body is not JSON: ")
    assert error["message"].endswith(" at character 10")
    assert error["param"] is None
