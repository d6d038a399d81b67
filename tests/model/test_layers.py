"""Parts of the decoder against transformers and against themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sdrpn.method.spec import RopeScaling
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
    """What stands behind the row that is asked for cannot be seen by it."""
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
