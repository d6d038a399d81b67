"""Answers by a JSON schema: whatever the model would say, every answer fits."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from sdrpn.checkpoint.random import write_byte_tokenizer
from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.grammar import Grammars
from sdrpn.runtime.server.requests import ResponseFormat
from tests.families.qwen.models import KINDS
from tests.runtime.server.serving import Server, chat_body, data_url, scene_url, serving

SIGN = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["sign", "plate", "door"]},
        "legible": {"type": "boolean"},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["text", "kind", "legible", "lines"],
    "additionalProperties": False,
}


def wanted(schema: dict[str, Any]) -> ResponseFormat:
    return ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "sign", "schema": schema}})


def fits_sign(value: Any) -> bool:
    return (
        set(value) == {"text", "kind", "legible", "lines"}
        and isinstance(value["text"], str)
        and len(value["text"]) <= 8
        and value["kind"] in ("sign", "plate", "door")
        and isinstance(value["legible"], bool)
        and all(isinstance(line, int) and 0 <= line <= 99 for line in value["lines"])
        and len(value["lines"]) <= 3
    )


@pytest.fixture(scope="module")
def server(text_bundle: Path) -> Iterator[Server]:
    """Random weights: what it says is chance, and so is nearly never JSON."""
    with Session.open(text_bundle, threads=1) as session, serving(session, ServerOptions(model="demo")) as running:
        yield running


@pytest.fixture(scope="module")
def grammars(server: Server) -> Grammars:
    return server.service.models.current.grammars


def ask(server: Server, form: dict[str, Any], url: str | None = None, **entries: Any) -> dict[str, Any]:
    body = chat_body(url or scene_url(), "What is it?", **{"max_tokens": 120, **entries}, response_format=form)
    body["roi"] = {"enabled": False}
    reply = server.post("/v1/chat/completions", body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json()["choices"][0])


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_answers_fit(server: Server, temperature: float) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sign", "schema": SIGN, "strict": True}}
    for seed in range(4):
        choice = ask(server, form, temperature=temperature, seed=seed)
        assert choice["finish_reason"] == "stop"
        assert fits_sign(json.loads(choice["message"]["content"]))


def test_they_are_valid_a_thousand_times(server: Server, grammars: Grammars) -> None:
    """A thousand answers of a model that says anything: tokens are drawn from what may follow, without its graphs."""
    eos = set(server.session.spec.prompt.eos_token_ids)
    tokenizer, chance = server.session.tokenizer, random.Random(0)
    assert tokenizer is not None
    logits = np.zeros(server.session.spec.llm.vocabulary, np.float32)
    for _ in range(1000):
        constraint = grammars.constraint(wanted(SIGN))
        assert constraint is not None
        ids: list[int] = []
        while True:
            allowed = np.flatnonzero(np.isfinite(constraint.restricted(logits)))
            token_id = int(chance.choice(allowed))
            if token_id in eos:
                break
            ids.append(token_id)
            if constraint.accept(token_id):
                break
            assert len(ids) < 1000
        assert fits_sign(json.loads(tokenizer.decode(ids)))


@pytest.mark.slow
def test_a_thousand_whole_answers_fit(server: Server) -> None:
    """The same through the graphs, several at once: what the model likes is chance."""
    form = {"type": "json_schema", "json_schema": {"name": "sign", "schema": SIGN, "strict": True}}
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    url = data_url(file.getvalue())

    def answered(seed: int) -> dict[str, Any]:
        return ask(server, form, url, temperature=2, seed=seed)

    with ThreadPoolExecutor(4) as threads:
        choices = list(threads.map(answered, range(1000), timeout=600))
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    assert all(fits_sign(json.loads(choice["message"]["content"])) for choice in choices)
    assert len({choice["message"]["content"] for choice in choices}) > 500


def test_any_object(server: Server, grammars: Grammars) -> None:
    constraint = grammars.constraint(ResponseFormat(type="json_object"))
    assert constraint is not None
    allowed = np.flatnonzero(np.isfinite(constraint.restricted(np.zeros(288, np.float32))))
    assert server.session.tokenizer is not None
    assert [server.session.tokenizer.decode([int(token)]) for token in allowed] == ["{"]


def test_ids_without_a_token(tmp_path: Path) -> None:
    """Between the words and the special tokens; they are never chosen, and the end of the answer behind them is."""
    spec = KINDS["q-zoom-3"]
    write_byte_tokenizer(tmp_path / "tokenizer.json", spec)
    grammars = Grammars(tmp_path / "tokenizer.json", spec.llm.vocabulary, spec.prompt.eos_token_ids)
    constraint = grammars.constraint(wanted({"type": "object", "properties": {"a": {"type": "string"}}}))
    assert constraint is not None
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ends = False
    for token in tokenizer.encode('{"a":"b"}', add_special_tokens=False).ids:
        allowed = np.flatnonzero(np.isfinite(constraint.restricted(np.zeros(spec.llm.vocabulary, np.float32))))
        assert token in allowed
        assert all(tokenizer.id_to_token(int(each)) for each in allowed)
        ends = constraint.accept(token)
    assert ends or spec.prompt.eos_token_ids[0] in np.flatnonzero(
        np.isfinite(constraint.restricted(np.zeros(spec.llm.vocabulary, np.float32)))
    )


def test_text_is_not_constrained(grammars: Grammars) -> None:
    assert grammars.constraint(None) is None
    assert grammars.constraint(ResponseFormat(type="text")) is None


def test_logits_are_not_changed(grammars: Grammars) -> None:
    logits = np.zeros(288, np.float32)
    constraint = grammars.constraint(wanted(SIGN))
    assert constraint is not None
    constraint.restricted(logits)
    assert not logits.any()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "no type"}, "cannot be used"),
        ({"enum": []}, "cannot be used"),
        ({"$ref": "https://example.com/schema.json"}, "cannot be used"),
        ({"description": "x" * 70_000}, "70,0"),
    ],
)
def test_what_cannot_be_followed_is_refused(grammars: Grammars, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(Fault, match=message) as found:
        grammars.constraint(wanted(schema))
    assert found.value.status == 400
    assert len(found.value.message) < 300


def test_a_format_without_its_schema_is_refused(grammars: Grammars) -> None:
    with pytest.raises(Fault, match="json_schema is missing"):
        grammars.constraint(ResponseFormat(type="json_schema"))


def test_a_tokenizer_of_words_says_that_it_cannot() -> None:
    with Session.open("demo", threads=1) as session, serving(session, ServerOptions(model="demo")) as words:
        body = chat_body(scene_url(), response_format={"type": "json_object"}, max_tokens=8)
        reply = words.post("/v1/chat/completions", body)
    assert reply.status_code == 400
    assert "JSON schema" in reply.json()["error"]["message"]
