"""The shapes that engines are made for, and the options they come from."""

from __future__ import annotations

import dataclasses

import pytest

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.engines import BuildOptions
from sdrpn.engines.options import checked_context, checked_contexts, chosen_graphs, require_aligned
from sdrpn.engines.phases import Phases
from sdrpn.engines.profiles import profiles_of, shapes_of
from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec

LLAVA_7B = ModelSpec(
    VisionSpec(image_size_px=336, patch_size_px=14, width=1024, layers=24, heads=16, mlp_width=4096),
    LlmSpec(
        vocabulary=32000, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11008, max_context=4096
    ),
    tap_layer=15,
    rpn=RpnSpec(layers=3),
)
PLAIN_7B = dataclasses.replace(LLAVA_7B, rpn=None)


@pytest.mark.parametrize(("graph", "usual", "at_once"), [("trunk", 641, 1), ("tail", 1217, 2)])
def test_a_decode_step_has_one_row_exactly(graph: str, usual: int, at_once: int) -> None:
    decode, prefill = profiles_of(LLAVA_7B, graph, 2048, 4)
    assert (decode.name, prefill.name) == ("decode", "prefill")
    assert decode.extents == {"batch": (1, 1, 4), "sequence": (1, 1, 1), "cache_length": (2048, 2048, 2048)}
    assert prefill.extents == {
        "batch": (1, 1, at_once),
        "sequence": (1, usual, 2048),
        "cache_length": (2048, 2048, 2048),
    }


def test_a_decode_step_has_a_range_of_batches() -> None:
    """For exactly one request TensorRT-RTX 1.7 transposes every weight, and copies read-only caches."""
    assert profiles_of(LLAVA_7B, "trunk", 2048, 1)[0].extents["batch"] == (1, 1, 2)
    assert profiles_of(LLAVA_7B, "trunk", 2048, 4)[0].extents["batch"] == (1, 1, 4)


def test_a_decode_step_is_tuned_for_a_named_batch() -> None:
    assert profiles_of(LLAVA_7B, "trunk", 2048, 4, tuned_batch=3)[0].extents["batch"] == (1, 3, 4)
    for profile in profiles_of(LLAVA_7B, "tail", 4096, 4, (1024,), tuned_batch=4)[::2]:
        assert profile.extents["batch"] == (1, 4, 4)
    assert (BuildOptions().usual_batch, BuildOptions(max_batch=4).usual_batch) == (1, 4)
    assert BuildOptions(max_batch=4, tuned_batch=2).usual_batch == 2
    with pytest.raises(BadInput, match="tuned_batch is 5, max_batch is 4; expected at most that"):
        BuildOptions(max_batch=4, tuned_batch=5)


def test_caches_of_every_request_begin_where_tensorrt_takes_a_tensor() -> None:
    """Rows of 3 heads of 4 halves are 24 bytes: 32 of them are a multiple of 256."""
    caches = (
        TensorInfo("a", "float16", ("batch", 3, "cache_length", 4), "cache"),
        TensorInfo("b", "float16", ("batch", 32, "cache_length", 128), "cache"),
    )
    for contexts in ((32,), (64, 1024)):
        require_aligned(caches, contexts, 4)
    require_aligned(caches, (1185,), 1)
    require_aligned(caches[1:], (1185,), 4)
    message = "max_batch is 4 and max_context 1185: caches of that length .*; expected a multiple of 32"
    with pytest.raises(BadInput, match=message):
        require_aligned(caches, (64, 1185), 4)


def test_the_rpn_has_no_decode_step() -> None:
    (prefill,) = profiles_of(LLAVA_7B, "rpn", 2048, 4)
    assert prefill.extents["sequence"] == (1, 641, 2048)


def test_without_rpn_there_is_no_crop() -> None:
    assert profiles_of(PLAIN_7B, "tail", 2048, 1)[1].extents["sequence"] == (1, 641, 2048)


def test_the_usual_prefill_fits_a_small_context() -> None:
    assert profiles_of(LLAVA_7B, "tail", 1200, 1)[1].extents["sequence"] == (1, 1200, 1200)


def test_several_contexts_have_both_profiles_each() -> None:
    found = profiles_of(LLAVA_7B, "tail", 4096, 1, (1024,))
    assert [(profile.name, profile.decodes, profile.cache_length) for profile in found] == [
        ("decode-1024", True, 1024),
        ("prefill-1024", False, 1024),
        ("decode-4096", True, 4096),
        ("prefill-4096", False, 4096),
    ]
    assert [profile.extents["sequence"] for profile in found[1::2]] == [(1, 1024, 1024), (1, 1217, 4096)]
    assert [entry.name for entry in profiles_of(LLAVA_7B, "rpn", 4096, 1, (1024,))] == ["prefill-1024", "prefill-4096"]
    assert [profile.name for profile in profiles_of(LLAVA_7B, "vision", 4096, 1, (1024,))] == ["images"]


def test_shapes_name_every_dynamic_input() -> None:
    inputs = (
        TensorInfo("x", "float32", ("batch", "sequence", 8)),
        TensorInfo("key_cache.0", "float16", ("batch", 2, "cache_length", 4)),
        TensorInfo("fixed", "float32", (3,)),
    )
    decode = profiles_of(LLAVA_7B, "trunk", 2048, 4)[0]
    assert shapes_of(decode, inputs) == {
        "x": ((1, 1, 8), (1, 1, 8), (4, 1, 8)),
        "key_cache.0": ((1, 2, 2048, 4), (1, 2, 2048, 4), (4, 2, 2048, 4)),
    }


class TestOptions:
    def test_the_context(self) -> None:
        assert checked_context(LLAVA_7B, 4096, None) == 4096
        assert checked_context(LLAVA_7B, 4096, 1153) == 1153
        assert checked_context(PLAIN_7B, 4096, 577) == 577
        with pytest.raises(BadInput, match="1152 is too small: an image and a crop and one token take 1153 positions"):
            checked_context(LLAVA_7B, 4096, 1152)
        with pytest.raises(ContextTooLong, match="5000 is above the bundle's 4096"):
            checked_context(LLAVA_7B, 4096, 5000)

    def test_several_contexts(self) -> None:
        options = BuildOptions(max_context=4096, shorter_contexts=(2048, 1024))
        assert checked_contexts(LLAVA_7B, 4096, options) == (1024, 2048, 4096)
        assert checked_contexts(LLAVA_7B, 4096, BuildOptions()) == (2048,)  # nobody pays for a longer one unasked
        assert checked_contexts(LLAVA_7B, 1500, BuildOptions()) == (1500,)
        with pytest.raises(BadInput, match="max_context 576 is too small: an image and one token take 577"):
            checked_contexts(LLAVA_7B, 4096, BuildOptions(max_context=4096, shorter_contexts=(576,)))
        with pytest.raises(BadInput, match="4096,4096 is not a list of different lengths"):
            checked_contexts(LLAVA_7B, 4096, BuildOptions(max_context=4096, shorter_contexts=(4096,)))
        with pytest.raises(BadInput, match="shorter_contexts need a max_context, and none is given"):
            BuildOptions(shorter_contexts=(1024,))

    def test_the_graphs(self) -> None:
        assert chosen_graphs(LLAVA_7B, None) == ("vision", "trunk", "rpn", "tail")
        assert chosen_graphs(LLAVA_7B, ("tail", "vision")) == ("vision", "tail")
        assert chosen_graphs(LLAVA_7B, None, "look") == ("vision", "trunk", "rpn")
        gated = dataclasses.replace(LLAVA_7B, rpn=RpnSpec(layers=3, gate_layers=1))
        assert chosen_graphs(gated, None, "look") == ("vision", "trunk", "gate", "rpn")
        with pytest.raises(BadInput, match="no graph rpn; it has vision, trunk, tail"):
            chosen_graphs(PLAIN_7B, ("rpn",))
        with pytest.raises(BadInput, match="none named"):
            chosen_graphs(PLAIN_7B, ())

    def test_numbers(self) -> None:
        with pytest.raises(BadInput, match="opt_level is 6; expected 0 to 5"):
            BuildOptions(opt_level=6)
        with pytest.raises(BadInput, match="max_batch is 0"):
            BuildOptions(max_batch=0)


def test_progress_goes_through_nested_phases_and_never_back() -> None:
    phases, shares = Phases(), []
    phases.start("build", None, 2)
    phases.start("optimize", "build", 2)
    for step in range(2):
        phases.step("optimize", step)
        shares.append(phases.share)
    phases.finish("optimize")
    phases.step("build", 0)
    phases.start("emit", "build", 4)
    phases.step("emit", 1)
    shares.append(phases.share)
    phases.finish("emit")
    phases.finish("build")
    phases.step("unknown", 3)
    assert [*shares, phases.share] == [0.25, 0.5, 0.75, 1.0]
