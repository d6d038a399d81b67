"""`sdrpn plan` with the name of a published model."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import Command, refusal


def test_the_verb(sdrpn: Command) -> None:
    outcome = sdrpn("plan", "qwen3-vl-8b-q-zoom", "--precision", "int4", "--json")
    found = json.loads(outcome.out)
    assert (outcome.code, found["shape"], found["fits"]) == (0, "qwen3-vl-8b-q-zoom", True)
    assert {device["target"]: device["fits"] for device in found["devices"]}["rtx-portable"] is False
    table = sdrpn("plan", "qwen3-vl-8b-q-zoom", "--precision", "int4", "--target", "rtx-portable")
    assert table.code == 1
    assert "none" in table.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--precision", "int4"), "precision is for the name of a published model, and a bundle has its own"),
        (("demo", "--image-tokens", "4:9"), "image tokens is for the name of a published model"),
        (("qwen3-vl-4b-q-zoom", "--context", "100,200"), "is planned with one context; name one (--context)"),
        (("qwen3-vl-4b-q-zoom", "--parts", "look"), "parts is for a bundle"),
        (("qwen3-vl-4b-q-zoom", "--variant", "fused-int4"), "image tokens: leave it out (--variant)"),
        (("qwen3-vl-4b-q-zoom", "--prefix-bytes", "5"), "prefix bytes is for a bundle"),
        (("qwen3-vl-4b-q-zoon",), "nor the name of a published model; did you mean qwen3-vl-4b-q-zoom?"),
        (("qwen3-vl-4b-q-zoom", "--precision", "int3"), "int3"),
        (("qwen3-vl-4b-q-zoom", "--target", "toaster"), "there is no target 'toaster'"),
        (("llava-1.5-7b-sd-rpn", "--image-tokens", "4:9"), "this model turns every picture into 576 tokens"),
    ],
)
def test_what_is_refused(sdrpn: Command, arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(sdrpn("plan", *arguments))
