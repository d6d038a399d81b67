"""Image tokens and presets in requests: what a session and the command line make of them, in every interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.method.policy import RoiChange
from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from tests.families.qwen.bundles import qwen_bundle
from tests.runtime.server.serving import Server, chat_body, data_url, png_of, scene_url, serving

QUESTION = "what is it?"
NOISE = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
PICTURE = Image.fromarray(NOISE).resize((400, 300), Image.Resampling.BILINEAR)
URL = data_url(png_of(PICTURE))
SMALL = {"image_tokens": [4, 24]}
EVERYWHERE: dict[str, Any] = {"threshold": 0.01, "gate_threshold": -1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Q-Zoom on Qwen3-VL, with a gate."""
    bundle = qwen_bundle("q-zoom-3", tmp_path_factory.mktemp("served"))
    options = ServerOptions(model="demo")
    with Session.open(bundle, threads=1) as session, serving(session, options) as running:
        yield running


def chat(server: Server, **entries: Any) -> dict[str, Any]:
    reply = server.post("/v1/chat/completions", chat_body(URL, QUESTION, max_tokens=3, **entries))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("entries", [{}, {"image_tokens": [80, 100]}, {"resize": "official"}, SMALL])
def test_an_answer_has_that_budget(server: Server, entries: dict[str, Any]) -> None:
    reply = chat(server, roi=EVERYWHERE, **entries)
    tokens, resize = entries.get("image_tokens"), entries.get("resize")
    expected = server.session.answer(
        PICTURE,
        QUESTION,
        roi=RoiChange(**EVERYWHERE),
        max_new_tokens=3,
        image_tokens=None if tokens is None else tuple(tokens),
        resize=resize,
    )
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["prompt_tokens"] == expected.tokens.prompt + expected.tokens.roi
    assert [box["xyxy_px"] for box in reply["sdrpn"]["boxes"]] == [list(box) for box in expected.boxes_xyxy_px]
    if entries == SMALL:
        assert [box["cells"] for box in reply["sdrpn"]["boxes"]] == [[0, 0, 5, 4]]


def test_a_preset_is_its_figures_unless_others_are_given(server: Server) -> None:
    once = {"roi": {"enabled": False}}
    document = chat(server, preset="document", **once)["usage"]["prompt_tokens"]
    assert document == chat(server, image_tokens=[256, 576], **once)["usage"]["prompt_tokens"]
    assert chat(server, preset="document", **once, **SMALL)["usage"]["prompt_tokens"] < document


def test_a_region_on_the_grid_of_the_budget(server: Server) -> None:
    region = [100, 80, 300, 200]
    small, large = chat(server, region=region, **SMALL), chat(server, region=region, image_tokens=[60, 80])
    assert 0 < small["sdrpn"]["roi_tokens"] <= 24
    assert 60 <= large["sdrpn"]["roi_tokens"] <= 80


def test_a_look_has_that_budget_and_the_preset_its_thresholds(server: Server) -> None:
    body = {"image": URL, "question": QUESTION, "map": "float16", **SMALL}
    reply = server.post("/v1/look", body).json()
    assert reply["looks"][0]["map"]["shape"] == [4, 5]
    chart = server.post("/v1/look", {**body, "preset": "reading"}).json()
    assert (chart["policy"]["threshold"], chart["policy"]["gate_threshold"]) == (0.125, 0.1)
    other = server.post("/v1/look", {**body, "preset": "reading", "roi": {"threshold": 0.5}}).json()
    assert (other["policy"]["threshold"], other["policy"]["gate_threshold"]) == (0.5, 0.1)


def test_by_responses(server: Server) -> None:
    content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": QUESTION}]
    body = {"input": [{"role": "user", "content": content}], "max_output_tokens": 3, "roi": EVERYWHERE, **SMALL}
    reply = server.post("/v1/responses", body).json()
    assert reply["usage"]["input_tokens"] == chat(server, roi=EVERYWHERE, **SMALL)["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"preset": "poem"}, "preset: Input should be 'scene', 'document', 'chart', 'reading', 'search' or"),
        ({"image_tokens": [4]}, "image_tokens.1: Field required"),
        ({"image_tokens": [3, 24]}, "the least and the most image tokens are 3 and 24; expected 4 <= least <= most"),
        ({"image_tokens": [30, 24]}, "the least and the most image tokens are 30 and 24; expected 4 <= least <= most"),
        ({"image_tokens": [4, 9000]}, "image_tokens are 4 to 9000; this bundle has 2048 positions for the whole"),
        ({"preset": "search"}, "image_tokens are 512 to 4096; this bundle has 2048 positions for the whole prompt"),
        ({"resize": "twice"}, "resize: Input should be 'once' or 'official'"),
        ({"roi": {"upscale": "mask"}}, "upscale is 'mask'; this model looks at one box around all cells above"),
    ],
)
def test_what_is_refused(server: Server, entries: dict[str, Any], message: str) -> None:
    look = {"image": URL, "question": QUESTION}
    for path, body in (("/v1/chat/completions", chat_body(URL, QUESTION)), ("/v1/look", look)):
        reply = server.post(path, body | entries)
        assert reply.status_code == 400, path
        said = reply.json()["error"]["message"]
        assert message in said
        assert "\n" not in said


def test_without_a_picture(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "preset": "document"}
    assert "there is no picture" in server.post("/v1/chat/completions", body).json()["error"]["message"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"preset": "document"}, "the preset 'document' is for Qwen2.5-VL and Qwen3-VL"),
        (SMALL, "this model turns every picture into 144 tokens: leave them out"),
        ({"resize": "once"}, "resize is 'once'; this model's pictures are resized as the official pipeline does it"),
    ],
)
def test_a_model_without_a_budget_refuses(entries: dict[str, Any], message: str) -> None:
    with Session.open("demo", threads=1) as session, serving(session) as running:
        reply = running.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=2) | entries)
        assert reply.status_code == 400
        assert message in reply.json()["error"]["message"]


def test_the_reference_names_them(server: Server) -> None:
    schemas = server.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "ResponsesRequest", "LookRequest"):
        assert {"preset", "image_tokens", "resize"} <= set(schemas[name]["properties"])
    page = server.get("/docs").text
    assert all(name in page for name in ("preset", "image_tokens", "high-resolution"))
