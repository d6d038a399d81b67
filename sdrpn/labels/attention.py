"""Attention from the tokens of an answer to the image, recorded per head. PyTorch; knows no files.

Only the needed rows are recomputed, from the layer's input and its cached keys, and summed at once: no attention tensor
over the whole prompt is ever in memory. Heads may be below and above the tap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.method.grids import ImageGrid
from sdrpn.method.spec import LlmSpec
from sdrpn.model.base import SdRpnModel
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import Attention, DecoderLayer, KvCache, causal_mask, rotary, rotate
from sdrpn.model.positions import RowPositions, prompt_positions
from sdrpn.text.prompt import Prompt

__all__ = ["Rows", "WatchHeads", "WatchedAnswer", "all_heads", "require_heads", "watch_answer"]

# Whose attention is recorded. "answer": the rows of the answer's tokens, the last of which predicts the end (the
# official choice). "predicting": the rows that predict these tokens. "last-prompt": the row of the prompt's last token.
Rows = Literal["answer", "predicting", "last-prompt"]
Heads = Mapping[int, Sequence[int]]  # layer -> heads


@dataclass(frozen=True, eq=False)
class WatchedAnswer:
    """An answer and the attention of its tokens. C image tokens."""

    token_ids: tuple[int, ...]  # without the stop id
    row_count: int  # 0: the answer has no such row, and `attention` is 0
    attention: dict[int, NDArray[np.float32]]  # layer -> (requested heads, C), mean over the rows


def all_heads(llm: LlmSpec) -> dict[int, range]:
    """Every head of every layer."""
    return {layer: range(llm.heads) for layer in range(llm.layers)}


@torch.inference_mode()
def watch_answer(
    model: SdRpnModel,
    image_embeds: Tensor,
    prompt: Prompt,
    heads: Heads,
    *,
    grid: ImageGrid,
    rows: Rows = "answer",
    max_new_tokens: int = 128,  # the official code's limit
    stop_ids: Collection[int] = (),
    given_ids: Sequence[int] | None = None,
) -> WatchedAnswer:
    """Answer greedily, without a second pass, and record the attention of `heads` to the image.

    Args:
        image_embeds: (C,D)
        grid: the cells over the picture
        heads: layer -> heads, any layers of the LLM
        given_ids: the answer's tokens, instead of the model's own; layers above the highest of `heads` do not run
    Raises BadInput for a head that the model does not have, ContextTooLong.
    """
    llm = model.spec.llm
    require_heads(llm, heads)
    room = max_new_tokens if given_ids is None else len(given_ids)
    length = len(prompt.ids_before) + len(image_embeds) + len(prompt.ids_after)
    if length + room > llm.max_context:
        raise ContextTooLong(
            f"a prompt of {length} tokens and an answer of up to {room} need {length + room} positions; the model has "
            f"{llm.max_context}: shorten the question or the answer"
        )
    layers, top = LayerStack(model), max(heads) + 1
    before, after = (_embed(model, ids) for ids in (prompt.ids_before, prompt.ids_after))
    embeds = torch.cat((before, image_embeds, after))[None]
    cache = KvCache()
    # The prompt's last token runs later, with the answer. Layers above the highest head run only for own answers.
    placed = prompt_positions(model.spec, len(before), grid, len(after))
    first = placed.rows(0, length - 1, embeds.device)
    layers.run(embeds[:, :-1], first, cache, last=None if given_ids is None else top)

    if given_ids is None:
        token_ids, fed = _generate(
            model, layers, embeds[:, -1:], length - 1, placed, cache.fork(), max_new_tokens, stop_ids
        )
    else:
        token_ids, fed = tuple(given_ids), len(given_ids)
    chunk = torch.cat((embeds[0, -1:], _embed(model, token_ids[:fed])))[None]
    wanted = {"answer": slice(1, 1 + fed), "predicting": slice(0, len(token_ids)), "last-prompt": slice(0, 1)}[rows]
    image = slice(len(before), len(before) + len(image_embeds))
    with WatchHeads(layers.layers, heads, wanted, image) as watch:
        layers.run(chunk, placed.rows(length - 1, length - 1 + chunk.shape[1], chunk.device), cache, last=top)
    return WatchedAnswer(token_ids, len(range(*wanted.indices(chunk.shape[1]))), watch.means)


class WatchHeads:
    """Inside the block, records the mean over rows of the attention of some heads to a span of tokens.

    The layers must run with a cache, under their own indices. `means`: layer -> (requested heads, span).
    """

    def __init__(self, layers: Sequence[DecoderLayer], heads: Heads, rows: slice, span: slice) -> None:
        self.means: dict[int, NDArray[np.float32]] = {}
        self._heads, self._rows, self._span = heads, rows, span
        self._modules = {layer: layers[layer].attention for layer in heads}
        self._hooks: list[Any] = []

    def __enter__(self) -> WatchHeads:
        self._hooks = [module.register_forward_hook(self._gather) for module in self._modules.values()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _gather(self, module: Attention, inputs: tuple[Tensor, Tensor, KvCache, int], output: Tensor) -> None:
        x, positions, cache, layer = inputs
        keys, asked = cache.keys(layer), self._rows
        rows = torch.arange(keys.shape[2] - x.shape[1], keys.shape[2], device=x.device)  # the new ones are the last
        weights = _attention_rows(module, x[:, asked], positions[:, asked], rows[asked], keys, self._heads[layer])
        sums = weights[0, :, :, self._span].sum(dim=1)  # (heads,C)
        mean = sums / max(1, weights.shape[2])
        self.means[layer] = mean.cpu().numpy()


def _attention_rows(
    attention: Attention, x: Tensor, positions: Tensor, rows: Tensor, keys: Tensor, heads: Sequence[int]
) -> Tensor:
    """x (1,S,D) of `rows` (S,) at `positions`, keys (1,H_kv,N,d) -> softmax weights (1,heads,S,N), in float32."""
    llm = attention.llm
    chosen = torch.tensor(list(heads), device=x.device)
    weight = attention.q.weight.reshape(llm.heads, llm.head_dim, -1)[chosen].flatten(0, 1)
    cos, sin = rotary(llm, positions)
    query = rotate(attention.split_heads(functional.linear(x, weight)), cos, sin)  # (1,heads,S,d)
    own_keys = keys[:, chosen // (llm.heads // llm.kv_heads)]  # several query heads may share a key head
    logits = query.float() @ own_keys.float().transpose(2, 3) / llm.head_dim**0.5
    hidden = ~causal_mask(rows, keys.shape[2], llm.sliding_window)
    weights: Tensor = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return weights


def _generate(
    model: SdRpnModel,
    layers: LayerStack,
    embeds: Tensor,
    start: int,
    placed: RowPositions,
    cache: KvCache,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> tuple[tuple[int, ...], int]:
    """Generate greedily from the prompt's last row; returns the tokens and how many of them were fed back."""
    token_ids: list[int] = []
    while len(token_ids) < max_new_tokens:
        here = start + len(token_ids)
        row = layers.run(embeds, placed.rows(here, here + 1, embeds.device), cache)[:, -1]
        token_id = int(model.tail.head(model.tail.norm(row))[0].argmax())
        if token_id in stop_ids:
            return tuple(token_ids), len(token_ids)
        token_ids.append(token_id)
        embeds = _embed(model, [token_id])[None]
    # The last token predicts nothing, so it is never run.
    return tuple(token_ids), max(0, len(token_ids) - 1)


def _embed(model: SdRpnModel, ids: Sequence[int]) -> Tensor:
    """(len(ids),D)."""
    embeds: Tensor = model.embed(torch.tensor(list(ids), dtype=torch.long, device=model.embed.weight.device))
    return embeds


def require_heads(llm: LlmSpec, heads: Heads) -> None:
    """Raise BadInput for a head that the model does not have, or where none is given."""
    if not heads or not all(heads.values()):
        raise BadInput("no heads to record; expected at least one for every layer that is named")
    for layer, numbers in heads.items():
        for head in numbers:
            if not (0 <= layer < llm.layers and 0 <= head < llm.heads):
                raise BadInput(
                    f"layer {layer} head {head} does not exist: the model has layers 0 to {llm.layers - 1} with heads "
                    f"0 to {llm.heads - 1}; choose heads of this model with `sdrpn heads`"
                )
