"""Parts of the decoder against transformers and against themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sdrpn.method.spec import RopeScaling, RpnSpec
from sdrpn.model.layers import DecoderLayer, KvCache, RmsNorm, rotary
from sdrpn.model.rpn import Rpn
from sdrpn.model.tail import Tail
from sdrpn.model.trunk import Trunk
from tests.tiny_models import tiny_llm, tiny_spec
from tests.tolerances import SAME_MATH_ABS

SCALINGS: dict[str, tuple[RopeScaling | None, dict[str, Any]]] = {
    "default": (None, {"rope_type": "default"}),
    "linear": (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rotary_equals_transformers(kind: str) -> None:
    scaling, parameters = SCALINGS[kind]
    llm = tiny_llm(rope_scaling=scaling, rope_theta=5e5, head_dim=32)
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=llm.max_context,
        rope_parameters={"rope_theta": 5e5, **parameters},
    )
    positions = torch.tensor([[0, 1, 2, 63, 64, 255], [7, 7, 100, 200, 3, 0]])
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    for found, reference in zip(rotary(llm, positions), expected, strict=True):
        torch.testing.assert_close(found[:, 0], reference, atol=SAME_MATH_ABS, rtol=0)


def test_rms_norm_computes_in_float32() -> None:
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # the squares overflow float16
    norm = RmsNorm(64, 1e-5).half()
    torch.testing.assert_close(norm(x), torch.ones(1, 64, dtype=torch.float16))


def test_a_cache_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(tiny_llm())
    x, positions = torch.randn(2, 9, 48), torch.arange(9).expand(2, 9)
    cache = KvCache()
    pieces = [layer(x[:, a:b], positions[:, a:b], cache, 5) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x, positions), atol=SAME_MATH_ABS, rtol=0)
    assert (cache.length(5), cache.length(0)) == (9, 0)


@pytest.mark.parametrize("last_layers", [1, 2, 3])
def test_rows_of_a_padded_batch_are_those_of_their_own(last_layers: int) -> None:
    """What follows the row that is asked for cannot be seen by it."""
    torch.manual_seed(0)
    spec = tiny_spec(tap_layer=1)
    trunk, rpn, tail = Trunk(spec), Rpn(spec), Tail(spec)
    embeds, positions = torch.randn(2, 7, 48), torch.arange(7).expand(2, 7)
    last_index = torch.tensor([6, 7 - 1 - last_layers])
    tap = trunk(embeds, positions)
    scores, logits = rpn(tap, positions, last_index), tail(tap, positions, last_index=last_index)
    assert (scores.shape, logits.shape) == ((2, 4, 7), (2, 300))
    for row, last in enumerate(last_index.tolist()):
        alone, places = embeds[row : row + 1, : last + 1], positions[:1, : last + 1]
        own_tap = trunk(alone, places)
        torch.testing.assert_close(rpn(own_tap, places)[0], scores[row, :, : last + 1], atol=SAME_MATH_ABS, rtol=0)
        torch.testing.assert_close(tail(own_tap, places)[0], logits[row], atol=SAME_MATH_ABS, rtol=0)


def test_scores_are_scaled_dot_products_of_shared_key_heads() -> None:
    torch.manual_seed(0)
    spec = tiny_spec()
    rpn = Rpn(spec)
    positions = torch.arange(5)[None]
    tap = torch.randn(1, 5, 48)
    scores = rpn(tap, positions)
    layers: list[Any] = list(rpn.layers)
    whole, last = layers
    normed = last.input_norm(rpn.norm(whole(tap, positions)))[0]
    query, key = last.attention.q(normed[-1]), last.attention.k(normed)
    for head in range(4):
        of_head = slice(16 * head, 16 * head + 16)
        of_key = slice(16 * (head // 2), 16 * (head // 2) + 16)
        expected = key[:, of_key] @ query[of_head] / 4
        torch.testing.assert_close(scores[0, head], expected, atol=SAME_MATH_ABS, rtol=0)


def test_an_rpn_needs_a_description() -> None:
    with pytest.raises(ValueError, match="no RPN"):
        Rpn(tiny_spec(rpn=None))


def test_positions_of_every_pair_of_channels() -> None:
    torch.manual_seed(0)
    llm = tiny_llm()
    layer, x = DecoderLayer(llm), torch.randn(1, 6, 48)
    rows = torch.tensor([[0, 1, 2, 9, 10, 11]])
    by_pair = rows[..., None].expand(-1, -1, llm.head_dim // 2)
    assert torch.equal(layer(x, by_pair), layer(x, rows))
    moved = by_pair.clone()
    moved[..., -1] += 5  # of one pair alone, for all rows alike: only differences of positions count
    torch.testing.assert_close(layer(x, moved), layer(x, rows), atol=SAME_MATH_ABS, rtol=0)
    moved[0, 3, 0] += 2
    assert not torch.allclose(layer(x, moved), layer(x, rows), atol=1e-4)


def test_biases_and_norms_of_heads_are_where_the_spec_says() -> None:
    plain, more = DecoderLayer(tiny_llm()), DecoderLayer(tiny_llm(attention_bias=True, qk_norm=True))
    assert set(more.state_dict()) - set(plain.state_dict()) == {
        *(f"attention.{part}.bias" for part in ("q", "k", "v")),
        *(f"attention.{part}_norm.weight" for part in ("q", "k")),
    }


def test_scores_that_know_positions() -> None:
    torch.manual_seed(0)
    rpn = Rpn(tiny_spec(rpn=RpnSpec(2, rotary=True, outer_norm=False)))
    assert not any(name.startswith("norm.") for name in rpn.state_dict())
    tap, positions = torch.randn(1, 7, 48), torch.arange(7)[None]
    scores = rpn(tap, positions)
    torch.testing.assert_close(rpn(tap, positions + 40), scores, atol=SAME_MATH_ABS, rtol=0)
    gap = positions + torch.tensor([0, 0, 0, 9, 9, 9, 9])
    assert not torch.allclose(rpn(tap, gap), scores, atol=1e-3)


def test_scores_of_several_rows_are_those_of_each() -> None:
    torch.manual_seed(0)
    rpn = Rpn(tiny_spec(qk_norm=True, attention_bias=True, rpn=RpnSpec(2, rotary=True)))
    tap, positions = torch.randn(2, 7, 48), torch.arange(7).expand(2, 7)
    found = rpn.row_scores(tap, positions, 4)
    assert found.shape == (2, 4, 3, 7)
    for number, row in enumerate((4, 5, 6)):
        alone = rpn(tap, positions, torch.tensor([row, row]))
        torch.testing.assert_close(found[:, :, number], alone, atol=SAME_MATH_ABS, rtol=0)


def test_sinks_are_seen_by_the_first_query_head_of_the_first_token() -> None:
    torch.manual_seed(0)
    rpn = Rpn(tiny_spec(rpn=RpnSpec(1, rotary=True, outer_norm=False)))
    tap, positions = torch.randn(1, 5, 48), torch.arange(5)[None]
    layers: list[Any] = list(rpn.layers)
    normed = layers[0].input_norm(tap)
    query = layers[0].attention.q(normed)[0, 0, :16]  # at position 0 nothing is turned
    keys = layers[0].attention.keys(normed, positions)[0]
    expected = (keys @ query).mean(dim=0) / 4
    torch.testing.assert_close(rpn.sink_logits(tap, positions)[0], expected, atol=SAME_MATH_ABS, rtol=0)
