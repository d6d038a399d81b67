"""`sdrpn plan`, and the refusal of `sdrpn ask` that rests on the same sums."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sdrpn.engines import plan as engine_plan
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host import machine
from sdrpn.workflows import memory_plan, opened_session
from tests.cli.command import Command, refusal


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "bundle"
    for precision in ("fp16", "int4"):
        export_bundle(tiny_checkpoint, path, ExportOptions(precision))
    return path


def with_memory(monkeypatch: pytest.MonkeyPatch, available_bytes: int) -> None:
    found = dataclasses.replace(machine.read_machine(), memory_available_bytes=available_bytes)
    for place in (memory_plan, opened_session, engine_plan):
        monkeypatch.setattr(place, "read_machine", lambda: found)


def test_a_target_takes_the_variant_that_build_takes(sdrpn: Command, bundle: Path) -> None:
    outcome = sdrpn("plan", bundle, "--target", "rtx-4090", "--context", 100, "--json")
    plan = json.loads(outcome.out)
    assert outcome.code == 0
    assert (plan["variant"], plan["context"], plan["fits"], plan["largest_context"]) == ("fused-int4", 100, True, 256)
    assert plan["total_bytes"] == sum(plan["needs"].values())
    assert plan["memory_bytes"] == 24_000_000_000


def test_scores_that_may_be_written_out_are_counted(sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """JetPack 6.2's TensorRT is not known to fuse attention of the dialect primitive."""
    export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions("fp16", "primitive"))
    plan = json.loads(sdrpn("plan", tmp_path / "b", "--target", "jetson-orin-nx-jp62", "--json").out)
    assert plan["needs"]["attention_bytes"] == 3 * 2 * 4 * 256**2 * 2  # tensors, prefills, heads, rows and keys, fp16
    assert (
        "scores of attention if it is not fused" in sdrpn("plan", tmp_path / "b", "--target", "jetson-orin-nx-jp62").out
    )
    export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions("fp16"))
    fused = json.loads(sdrpn("plan", tmp_path / "b", "--target", "jetson-agx-orin-jp72", "--json").out)
    assert fused["needs"]["attention_bytes"] == 0
    assert plan["total_bytes"] == sum(plan["needs"].values())
    built = sdrpn("build", tmp_path / "b", "--target", "jetson-orin-nx-jp62", "--dry-run", "--json").json()
    assert built["estimate"]["attention_bytes"] == plan["needs"]["attention_bytes"]


def test_several_contexts(sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Memory is that of the longest; a step reads less at a shorter one."""
    export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions("fp16", "primitive"))
    target = ("--target", "rtx-4090")
    plan, single = (
        json.loads(sdrpn("plan", tmp_path / "b", *target, "--context", contexts, *more, "--json").out)
        for contexts, more in (("64,256", ()), ("256", ("--variant", "primitive-fp16")))
    )
    assert (plan["variant"], plan["context"], plan["contexts"]) == ("primitive-fp16", 256, [64, 256])
    assert plan["total_bytes"] == single["total_bytes"]
    row = 2 * 4 * 4 * 16 * 2  # keys and values, layers, heads, channels, fp16
    assert plan["step_bytes"]["256"] - plan["step_bytes"]["64"] == (256 - 64) * row
    text = sdrpn("plan", tmp_path / "b", *target, "--context", "64,256").out
    assert "64 and 256, 1" in text
    assert "a step reads at 64" in text


def test_what_caches_in_8_bits_would_save(sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads(sdrpn("plan", bundle, "--json").out)
    assert (plan["kv_cache"], plan["other"]["kv_cache"]) == (None, "int8")
    assert plan["other"]["caches_bytes"] < 0.6 * plan["needs"]["caches_bytes"]
    with_memory(monkeypatch, plan["total_bytes"] - 1)
    less = json.loads(sdrpn("plan", bundle, "--json").out)
    assert less["largest_context"] < less["other"]["largest_context"] == 256
    assert "with --kv-cache int8       caches " in sdrpn("plan", bundle).out


def test_what_they_save_where_the_library_holds_them_so(sdrpn: Command, coded_bundle: Path) -> None:
    pytest.importorskip("openvino")
    command = ("plan", coded_bundle, "--backend", "openvino", "--json")
    plain, coded = (json.loads(sdrpn(*command, *more).out) for more in ((), ("--kv-cache", "int8")))
    assert (plain["kv_cache"], coded["kv_cache"]) == (None, "int8")
    assert plain["other"]["caches_bytes"] == coded["needs"]["caches_bytes"] < plain["needs"]["caches_bytes"]
    assert coded["other"]["caches_bytes"] == plain["needs"]["caches_bytes"]
    assert coded["prefixes"]["picture_bytes"] < plain["prefixes"]["picture_bytes"]


def test_a_copy_for_decode_steps(sdrpn: Command) -> None:
    pytest.importorskip("openvino")
    from sdrpn.host.native_modules import native_module
    from sdrpn.runtime.backends.openvino_info import STEPS_MODULE, has_fast_steps

    command = ("plan", "demo", "--backend", "openvino", "--json")
    weights = {
        asked: json.loads(sdrpn(*command, "--decode-copy", asked).out)["needs"]["weights_bytes"]
        for asked in ("auto", "on", "off")
    }
    if has_fast_steps(native_module(STEPS_MODULE)):
        assert weights["on"] == weights["auto"] > weights["off"]
    else:
        assert weights["on"] == weights["auto"] == weights["off"]
    for others in ((), ("--backend", "onnxruntime"), ("--target", "l4")):
        assert "made with the backend openvino alone" in refusal(sdrpn("plan", "demo", "--decode-copy", "on", *others))


def test_what_they_save(sdrpn: Command, coded_bundle: Path) -> None:
    plan = json.loads(sdrpn("plan", coded_bundle, "--variant", "fused-fp32-kv-int8", "--json").out)
    assert (plan["kv_cache"], plan["other"]["kv_cache"]) == ("int8", None)
    assert plan["needs"]["caches_bytes"] < 0.6 * plan["other"]["caches_bytes"]
    assert "with caches not in 8 bits  caches " in sdrpn("plan", coded_bundle, "--variant", "fused-fp32-kv-int8").out


def test_batch_costs_caches(sdrpn: Command, bundle: Path) -> None:
    one, four = (
        json.loads(sdrpn("plan", bundle, "--target", "l4", "--batch", batch, "--json").out)["needs"]["caches_bytes"]
        for batch in (1, 4)
    )
    assert four == 4 * one


def test_what_is_kept_of_pictures_is_said_beside_it(
    sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes only what is left: neither the sum nor the verdict depends on it."""
    plan = json.loads(sdrpn("plan", bundle, "--json").out)
    picture = 16 * (11 * 64 * 4 + 64 * 4)  # image tokens; caches and tap in floats
    assert plan["prefixes"] == {
        "limit_bytes": 256_000_000,
        "picture_bytes": picture,
        "pictures": 256_000_000 // picture,
    }
    several = json.loads(sdrpn("plan", bundle, "--batch", 3, "--prefix-bytes", 100_000, "--json").out)
    assert several["prefixes"] == {"limit_bytes": 100_000, "picture_bytes": picture, "pictures": 100_000 // picture}
    with_memory(monkeypatch, plan["total_bytes"])
    assert sdrpn("plan", bundle).code == 0
    row = "pictures seen before       at most 100.0 kB of what is left: "
    assert row in sdrpn("plan", bundle, "--prefix-bytes", 100_000).out
    assert "pictures seen" not in sdrpn("plan", bundle, "--prefix-bytes", 0).out
    assert json.loads(sdrpn("plan", bundle, "--target", "l4", "--json").out)["prefixes"]["limit_bytes"] == 0


def test_what_looking_alone_takes(sdrpn: Command, bundle: Path) -> None:
    for place in ((), ("--target", "rtx-4090")):
        whole, part = (sdrpn("plan", bundle, *place, *more, "--json").json() for more in ((), ("--parts", "look")))
        assert (whole["parts"], part["parts"], part["step_bytes"]) == ("all", "look", {})
        for entry in ("weights_bytes", "caches_bytes", "images_bytes"):
            assert part["needs"][entry] < whole["needs"][entry]
        assert (part["other_parts_bytes"], whole["other_parts_bytes"]) == (whole["total_bytes"], part["total_bytes"])
    assert "without the tail" in sdrpn("plan", bundle, "--parts", "look").out
    assert re.search(r"^looks alone .*: \S+ .?B less$", sdrpn("plan", bundle).out, re.MULTILINE)


def test_a_model_that_cannot_look(sdrpn: Command, plain_bundle: Path) -> None:
    outcome = sdrpn("plan", plain_bundle, "--json")
    assert outcome.json()["other_parts_bytes"] is None
    assert "looks alone" not in sdrpn("plan", plain_bundle).out


@pytest.mark.parametrize("named", [("--graphs", "vision,trunk,rpn"), ("--parts", "look")])
def test_a_build_of_what_looks_is_planned_for_looks(sdrpn: Command, bundle: Path, named: tuple[str, str]) -> None:
    target = ("--target", "rtx-4090")
    built = sdrpn("build", bundle, *target, *named, "--dry-run", "--json").json()
    plan = sdrpn("plan", bundle, *target, "--parts", "look", "--json").json()
    assert built["estimate"]["weights_bytes"] == plan["needs"]["weights_bytes"]
    assert built["estimate"]["caches_bytes"] == plan["needs"]["caches_bytes"]


def test_what_looks_of_a_model_with_a_gate(sdrpn: Command) -> None:
    built = sdrpn("build", "demo", "--target", "rtx-4090", "--parts", "look", "--dry-run", "--json").json()
    assert [engine["graph"] for engine in built["engines"]] == ["vision", "trunk", "gate", "rpn"]
    both = sdrpn("build", "demo", "--target", "rtx-4090", "--parts", "look", "--graphs", "trunk", "--dry-run")
    assert refusal(both) == "graphs are trunk and parts is look; name one of the two (--graphs, --parts)"


def test_this_machine(sdrpn: Command, bundle: Path) -> None:
    outcome = sdrpn("plan", bundle)
    assert outcome.code == 0
    assert outcome.out.startswith("this machine's CPU")
    assert "fused-int4-cpu" in outcome.out
    assert ": fits\n" in outcome.out


def test_what_does_not_fit_exits_1_and_says_which_context_would(
    sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(sdrpn("plan", bundle, "--json").out)
    with_memory(monkeypatch, whole["total_bytes"] - 1)
    outcome = sdrpn("plan", bundle, "--json")
    plan = json.loads(outcome.out)
    assert (outcome.code, plan["fits"]) == (1, False)
    assert 0 < plan["largest_context"] < 256


def test_ask_refuses_what_cannot_fit(
    sdrpn: Command, text_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1_000_000)
    outcome = sdrpn("ask", text_bundle, picture, "What?")
    assert (outcome.code, outcome.out) == (1, "")
    assert "this machine has 1.0 MB available" in outcome.err
    assert sdrpn("ask", text_bundle, picture, "What?", "--no-memory-check", "--max-new-tokens", 1).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", 257), "a context of 257 is above the bundle's 256; name a shorter one, or export with"),
        (("--target", "rtx-4090", "--backend", "openvino"), "name one of the two (--target, --backend)"),
        (("--context", 0), "argument --context"),
        (("--context", "64,64"), "'64,64' lists a length twice"),
        (("--target", "toaster"), "there is no target 'toaster'"),
        (("--variant", "fused-int3"), "has no variant 'fused-int3'"),
        (("--target", "jetson-orin-nx-jp62"), "needs variant primitive-int4 or primitive-fp16"),
    ],
)
def test_refusals(sdrpn: Command, bundle: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = sdrpn("plan", bundle, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
