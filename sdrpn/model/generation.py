"""Greedy answers of several prompts at once. PyTorch; knows no text and no files.

B prompts, S rows of the longest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sdrpn.model.base import SdRpnModel
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import KvCache
from sdrpn.model.prompt_batch import PromptBatch, Start, prompt_batch
from sdrpn.model.prompt_rows import PromptRows

__all__ = ["Generated", "continue_batch", "generate_answers"]

Generated = tuple[int, ...]  # token ids, without the stop id


@torch.inference_mode()
def generate_answers(
    model: SdRpnModel,
    prompts: Sequence[PromptRows],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    penalty: float = 1.0,
    prompt_ids: Sequence[Sequence[int]] | None = None,
    starts: Sequence[Start] | None = None,
) -> list[Generated]:
    """Answer every prompt greedily, all in one batch: the same ids as one by one.

    Args:
        stop_ids: an answer ends with the first of these
        penalty: repetition penalty: logits of tokens that are in the prompt or the answer already are divided by it,
            or multiplied where they are below 0
        prompt_ids: the text of each prompt, for the penalty
        starts: how each prompt starts, see `prompt_batch`; None: nothing is shared
    """
    batch, layers = prompt_batch(prompts, starts), LayerStack(model)
    cache = batch.prefilled(layers)
    return continue_batch(
        model,
        layers,
        batch,
        cache,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        penalty=penalty,
        prompt_ids=prompt_ids,
    )


@torch.inference_mode()
def continue_batch(
    model: SdRpnModel,
    layers: LayerStack,
    batch: PromptBatch,
    cache: KvCache,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    penalty: float = 1.0,
    prompt_ids: Sequence[Sequence[int]] | None = None,
) -> list[Generated]:
    """The same, where all rows of the prompts but the last are in `cache`, which grows."""
    answers: list[list[int]] = [[] for _ in range(len(batch))]
    said = _Said(model, penalty, prompt_ids or [()] * len(batch))
    running = list(range(len(batch)))  # prompts whose answer has not ended; `held`: those in the cache
    held = list(running)
    (embeds, features), row = batch.last_row(), batch.rows - 1
    while running and len(answers[running[0]]) < max_new_tokens:
        states = layers.run(embeds, batch.positions(row, row + 1, held), cache, deepstack=features)[:, -1]
        chosen = said.penalised(model.tail.head(model.tail.norm(states)).float(), held).argmax(dim=-1)
        for number, token_id in zip(held, chosen.tolist(), strict=True):
            if number not in running:
                continue
            if token_id in stop_ids:
                running.remove(number)
            else:
                answers[number].append(token_id)
        said.add(held, chosen)
        row, features = row + 1, ()
        if 2 * len(running) <= len(held):  # what has ended is not computed further
            kept = [place for place, number in enumerate(held) if number in running]
            index = torch.tensor(kept, device=chosen.device, dtype=torch.long)
            cache, chosen, held = cache.of(index), chosen[index], [held[place] for place in kept]
        embeds = model.embed(chosen[:, None])
    return [tuple(answer) for answer in answers]


class _Said:
    """The tokens that are in each prompt or its answer already."""

    def __init__(self, model: SdRpnModel, penalty: float, prompt_ids: Sequence[Sequence[int]]) -> None:
        self._penalty = penalty
        if penalty != 1.0:
            device = model.embed.weight.device
            self._said = torch.zeros(len(prompt_ids), model.spec.llm.vocabulary, dtype=torch.bool, device=device)
            for row, ids in zip(self._said, prompt_ids, strict=True):
                row[torch.tensor(list(ids), dtype=torch.long, device=device)] = True

    def penalised(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """Logits (b,V) of these prompts."""
        if self._penalty == 1.0:
            return logits
        changed = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        return torch.where(self._said[list(prompts)], changed, logits)

    def add(self, prompts: Sequence[int], token_ids: Tensor) -> None:
        """One token (b,) of each."""
        if self._penalty != 1.0:
            self._said[list(prompts), token_ids] = True
