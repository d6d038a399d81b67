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
from sdrpn.model.generation import Generated, continue_batch
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import Attention, DecoderLayer, KvCache, causal_mask, rotary, rotate, unpadded
from sdrpn.model.prompt_batch import PromptBatch, Start, prompt_batch
from sdrpn.model.prompt_rows import PromptRows, plain_rows
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt

__all__ = [
    "Heads",
    "Rows",
    "WatchHeads",
    "WatchedAnswer",
    "WatchedPrompt",
    "all_heads",
    "require_heads",
    "require_room",
    "watch_answer",
    "watch_answers",
    "watched_prompt",
]

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


@dataclass(frozen=True, eq=False)
class WatchedPrompt:
    """A prompt whose answer is watched.

    rows: the prompt; image: the place of the image's tokens among them
    start: equal for prompts that are the same up to the image's last row
    text_ids: the ids around the image, for the repetition penalty
    given_ids: the answer's tokens, instead of the model's own
    """

    rows: PromptRows
    image: slice
    start: Start
    text_ids: tuple[int, ...] = ()
    given_ids: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """The number of rows."""
        return self.rows.embeds.shape[1]


def watched_prompt(
    model: SdRpnModel, look: LookTokens, prompt: Prompt, grid: ImageGrid, given_ids: Sequence[int] | None = None
) -> WatchedPrompt:
    """The prompt of a question about a picture that `look` is at; `grid`: the cells over it."""
    rows = plain_rows(model, look, prompt.ids_before, prompt.ids_after, grid)
    image = slice(len(prompt.ids_before), len(prompt.ids_before) + look.embeds.shape[1])
    given = None if given_ids is None else tuple(given_ids)
    start = (look, tuple(prompt.ids_before)), image.stop
    return WatchedPrompt(rows, image, start, (*prompt.ids_before, *prompt.ids_after), given)


def watch_answer(
    model: SdRpnModel,
    look: LookTokens,
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
        look: (1,C,D)
        grid: the cells over the picture
        heads: layer -> heads, any layers of the LLM
        given_ids: the answer's tokens, instead of the model's own; layers above the highest of `heads` do not run
    Raises BadInput for a head that the model does not have, ContextTooLong.
    """
    asked = watched_prompt(model, look, prompt, grid, given_ids)
    (found,) = watch_answers(model, [asked], heads, rows=rows, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
    return found


def require_room(model: SdRpnModel, prompt: WatchedPrompt, max_new_tokens: int) -> None:
    """Raise ContextTooLong for a prompt that leaves no room for the answer."""
    room, limit = max_new_tokens if prompt.given_ids is None else len(prompt.given_ids), model.spec.llm.max_context
    if prompt.length + room > limit:
        raise ContextTooLong(
            f"a prompt of {prompt.length} tokens and an answer of up to {room} need {prompt.length + room} positions; "
            f"the model has {limit}: shorten the question or the answer"
        )


@torch.inference_mode()
def watch_answers(
    model: SdRpnModel,
    prompts: Sequence[WatchedPrompt],
    heads: Heads,
    *,
    rows: Rows = "answer",
    max_new_tokens: int = 128,
    stop_ids: Collection[int] = (),
) -> list[WatchedAnswer]:
    """The same for several prompts in one batch, of which either all or none have given answers."""
    require_heads(model.spec.llm, heads)
    for prompt in prompts:
        require_room(model, prompt, max_new_tokens)
    given = [prompt.given_ids for prompt in prompts if prompt.given_ids is not None]
    if given and len(given) < len(prompts):
        raise ValueError("some prompts have given answers, and some have not")
    batch = prompt_batch([prompt.rows for prompt in prompts], [prompt.start for prompt in prompts])
    layers, top = LayerStack(model), max(heads) + 1
    # The prompts' last tokens run later, with the answers. Layers above the highest head run only for own answers.
    cache = batch.prefilled(layers, top if given else None)
    answers: Sequence[Generated] = given or continue_batch(
        model,
        layers,
        batch,
        cache.fork(),
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        penalty=model.spec.prompt.repetition_penalty,
        prompt_ids=[prompt.text_ids for prompt in prompts],
    )
    # A token that ends an answer at the limit predicts nothing, so it is never run.
    cut = 0 if given else max_new_tokens
    fed = [len(answer) - (len(answer) == cut and cut > 0) for answer in answers]
    return _watched(model, layers, batch, cache, prompts, answers, fed, heads, rows)


def _watched(
    model: SdRpnModel,
    layers: LayerStack,
    batch: PromptBatch,
    cache: KvCache,
    prompts: Sequence[WatchedPrompt],
    answers: Sequence[Generated],
    fed: Sequence[int],
    heads: Heads,
    rows: Rows,
) -> list[WatchedAnswer]:
    """Run the prompts' last tokens and the answers again, up to the highest head; shorter answers end early."""
    last, most = batch.rows - 1, max(fed)
    ids = [(*answer[:count], *[0] * (most - count)) for answer, count in zip(answers, fed, strict=True)]
    embeds, features = batch.last_row()
    chunk = torch.cat((embeds, _embed(model, ids)), dim=1)
    wanted = [
        {"answer": slice(1, 1 + count), "predicting": slice(0, len(answer)), "last-prompt": slice(0, 1)}[rows]
        for answer, count in zip(answers, fed, strict=True)
    ]
    images = [
        slice(batch.place(number, prompt.image.start), batch.place(number, prompt.image.stop - 1) + 1)
        for number, prompt in enumerate(prompts)
    ]
    features = tuple(functional.pad(feature, (0, 0, 0, most)) for feature in features)
    with WatchHeads(layers.layers, heads, wanted, images) as watch:
        positions = batch.positions(last, last + 1 + most)
        layers.run(chunk, positions, cache, last=max(heads) + 1, deepstack=features)
    return [
        WatchedAnswer(answer, part.stop - part.start, {layer: found[place] for layer, found in watch.found.items()})
        for place, (answer, part) in enumerate(zip(answers, wanted, strict=True))
    ]


class WatchHeads:
    """Inside the block, records the mean over rows of the attention of some heads to a span of tokens.

    The layers must run with a cache, under their own indices. For a batch, `rows` and `span` are those of each
    sequence, and `found` is layer -> (requested heads, span) of each; for one, `means` has its own.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        heads: Heads,
        rows: slice | Sequence[slice],
        span: slice | Sequence[slice],
    ) -> None:
        self.found: dict[int, list[NDArray[np.float32]]] = {}
        self._heads = heads
        self._rows = [rows] if isinstance(rows, slice) else list(rows)
        self._spans = [span] if isinstance(span, slice) else list(span)
        self._modules = {layer: layers[layer].attention for layer in heads}
        self._hooks: list[Any] = []

    def __enter__(self) -> WatchHeads:
        self._hooks = [module.register_forward_hook(self._gather) for module in self._modules.values()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def means(self) -> dict[int, NDArray[np.float32]]:
        """Layer -> (requested heads, span), of the only sequence."""
        return {layer: of_one for layer, (of_one,) in self.found.items()}

    def _gather(self, module: Attention, inputs: tuple[Tensor, Tensor, KvCache, int], output: Tensor) -> None:
        x, positions, cache, layer = inputs
        keys, count = cache.keys(layer), x.shape[1]
        own = [range(count)[part] for part in self._rows]
        # Those that any sequence asks for.
        asked = slice(min((part.start for part in own if part), default=0), max(part.stop for part in own))
        rows = torch.arange(keys.shape[2] - count, keys.shape[2], device=x.device)[asked]  # the new ones are the last
        weights = _attention_rows(
            module, x[:, asked], positions[:, asked], rows, keys, self._heads[layer], cache.padding
        )
        self.found[layer] = [
            (weight[:, part.start - asked.start : part.stop - asked.start, span].sum(dim=1) / max(1, len(part)))
            .cpu()
            .numpy()
            for weight, part, span in zip(weights, own, self._spans, strict=True)
        ]


def _attention_rows(
    attention: Attention,
    x: Tensor,
    positions: Tensor,
    rows: Tensor,
    keys: Tensor,
    heads: Sequence[int],
    padding: Tensor | None = None,
) -> Tensor:
    """x (B,S,D) of `rows` (S,) at `positions`, keys (B,H_kv,N,d) -> softmax weights (B,heads,S,N), in float32."""
    llm = attention.llm
    chosen = torch.tensor(list(heads), device=x.device)

    def of_chosen(parameter: Tensor) -> Tensor:
        of_each = parameter.reshape(llm.heads, llm.head_dim, *parameter.shape[1:])
        return of_each[chosen].flatten(0, 1)

    bias = None if attention.q.bias is None else of_chosen(attention.q.bias)
    query = attention.split_heads(functional.linear(x, of_chosen(attention.q.weight), bias))  # (B,heads,S,d)
    query = rotate(attention.q_norm(query), *rotary(llm, positions))
    own_keys = keys[:, chosen // (llm.heads // llm.kv_heads)]  # several query heads may share a key head
    logits = query.float() @ own_keys.float().transpose(2, 3) / llm.head_dim**0.5
    seen = causal_mask(rows, keys.shape[2], llm.sliding_window)
    if padding is not None:
        seen = unpadded(seen, rows, padding)
    weights: Tensor = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return weights


def _embed(model: SdRpnModel, ids: Sequence[Sequence[int]]) -> Tensor:
    """(B,n) -> (B,n,D)."""
    embeds: Tensor = model.embed(torch.tensor(ids, dtype=torch.long, device=model.embed.weight.device))
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
