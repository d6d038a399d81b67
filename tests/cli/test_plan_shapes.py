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


def test_looks_alone(sdrpn: Command) -> None:
    """As a bundle of the same sizes is planned: without the tail's weights and caches, and of one picture."""
    asked = ("plan", "llava-1.5-7b-sd-rpn", "--precision", "int4", "--target", "jetson-agx-orin-jp72")
    whole, part = (json.loads(sdrpn(*asked, *more, "--json").out) for more in ((), ("--parts", "look")))
    assert (whole["parts"], part["parts"]) == ("all", "look")
    (all_of_it,), (looks,) = whole["devices"], part["devices"]
    assert looks["other_parts_bytes"] == all_of_it["total_bytes"]
    assert all_of_it["other_parts_bytes"] == looks["total_bytes"]
    # The tap is after 15 of 32 layers, and the tail has the LM head, in 16 bits; the RPN and the tower are in both.
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    head = 32_000 * 4096
    saved = 17 * layer * (4 + 16 / 32) / 8 + 2 * head
    assert all_of_it["needs"]["weights_bytes"] - looks["needs"]["weights_bytes"] == pytest.approx(saved, rel=0.001)
    assert looks["step_bytes"] is None
    table = sdrpn(*asked, "--parts", "look").out
    assert "without the tail" in table
    assert "with answers" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--precision", "int4"), "precision is for the name of a published model, and a bundle has its own"),
        (("demo", "--image-tokens", "4:9"), "image tokens is for the name of a published model"),
        (("qwen3-vl-4b-q-zoom", "--context", "100,200"), "is planned with one context; name one (--context)"),
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
