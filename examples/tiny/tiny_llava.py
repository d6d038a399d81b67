"""Tower, projector and LLM as they are trained together: pictures, then packed questions. Knows no schedule."""

from __future__ import annotations

import contextlib

import torch
from conversations import Batch
from dense_heads import DenseHeads, normalised
from networks import SPEC, VisionTower, make_llm, make_projector
from packing import IGNORED, PackedQuestions, prompt_ids_before
from torch import Tensor, nn
from torch.nn import functional

EARLY_LAYER, EARLY_WEIGHT, DENSE_WEIGHT = 4, 0.3, 0.3
SUBJECT_LAYER, SUBJECT_WEIGHT = 2, 0.3


class TinyLlava(nn.Module):
    """All of it, with the dense heads that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.heads = VisionTower(), DenseHeads()
        self.projector, self.llm = make_projector(), make_llm()
        self.register_buffer("ids_before", torch.tensor(prompt_ids_before()), persistent=False)

    def forward(self, batch: Batch, dense: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what share of its answers is right in every token."""
        with contextlib.nullcontext() if dense else torch.no_grad():
            base = self.tower(normalised(batch.base), batch.corner_rc)
            crops = self.tower(normalised(batch.crops)) if len(batch.crops) else None
        kept = None if crops is None else crops[:, batch.keep]
        loss, shares = self.language_loss(base, kept, batch.questions)
        if dense:
            loss = loss + DENSE_WEIGHT * self.dense_loss(base, crops, batch)
        return loss, shares

    def language_loss(
        self, base: Tensor, crops: Tensor | None, questions: PackedQuestions, subjects: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        """As `forward`, from what the tower made of the pictures.

        Args:
            base: (b,g*g,width)
            crops: (b*c,k,width), the cells that are inserted; None without crops
            subjects: the last token of a prompt must know early what the question is about. Without this a model of
                this size answers for hours about any tag, because the colour's name never gets to where answers begin
        """
        hidden = self.run_llm(base, crops, questions)
        labels = questions.labels[:, 1:]
        logits = self.llm.lm_head(hidden[-1][:, :-1])
        answers = labels >= 0
        loss = functional.cross_entropy(logits[answers], labels[answers])
        early_logits = self.read_out(hidden[EARLY_LAYER][:, :-1][answers])
        loss = loss + EARLY_WEIGHT * functional.cross_entropy(early_logits, labels[answers])
        if subjects:
            places = questions.answer_at[..., None].expand(-1, -1, SPEC.llm.width) - 1  # (b,questions,D)
            told = self.read_out(hidden[SUBJECT_LAYER].gather(1, places))
            wanted = questions.subjects.flatten()
            loss = loss + SUBJECT_WEIGHT * functional.cross_entropy(told.flatten(0, 1), wanted, ignore_index=IGNORED)
        return loss, exact_shares(logits.detach(), questions)

    def read_out(self, hidden: Tensor) -> Tensor:
        """(..,D) between two layers -> (..,V), as if the rest were not there."""
        logits: Tensor = self.llm.lm_head(self.llm.model.norm(hidden))
        return logits

    def run_llm(self, base: Tensor, crops: Tensor | None, questions: PackedQuestions) -> list[Tensor]:
        """(b,n,D) of the packed tokens: of the embeddings, after every layer, the last with the final norm."""
        embed = self.llm.get_input_embeddings()
        size = len(base)
        pictures = [embed(self.ids_before).expand(size, -1, -1), self.projector(base)]
        if crops is not None:
            kept = self.projector(crops)  # (b*c,k,D)
            pictures.append(kept.reshape(size, -1, kept.shape[-1]))
        prefix = torch.cat(pictures, dim=1)
        embeds = torch.cat((prefix, embed(questions.ids)), dim=1)
        first = prefix.shape[1]
        positions = torch.cat((torch.arange(first), first + questions.position))[None]
        output = self.llm.model(
            inputs_embeds=embeds,
            attention_mask=packed_mask(first, questions.segment),
            position_ids=positions.expand(size, -1),
            output_hidden_states=True,
            use_cache=False,
        )
        return [hidden[:, first:] for hidden in output.hidden_states]

    def dense_loss(self, base: Tensor, crops: Tensor | None, batch: Batch) -> Tensor:
        """The tower goes on recognising, cell by cell, so that reading is not lost while answering is learned."""
        truth = batch.base_truth.clone()
        truth[..., :2] = -100  # digits of the first look cannot be read
        total, _ = self.heads.losses(base, truth)
        return total if crops is None else total + self.heads.losses(crops, batch.crop_truth)[0]


def packed_mask(first: int, segment: Tensor) -> Tensor:
    """(1,1,S,S), 0 where a token may look and -inf where not: causal, and no question sees another."""
    whole = torch.cat((torch.full((first,), -1), segment))
    allowed = torch.ones(len(whole), len(whole)).tril().bool()
    allowed &= (whole[None, :] == -1) | (whole[:, None] == whole[None, :])
    return torch.zeros(len(whole), len(whole)).masked_fill(~allowed, float("-inf"))[None, None]


def exact_shares(logits: Tensor, questions: PackedQuestions) -> dict[str, float]:
    """Answers that are right in every token when each is predicted from the true ones before it."""
    labels = questions.labels[:, 1:]
    wrong = (logits.argmax(-1) != labels) & (labels >= 0)
    count = questions.kinds.shape[1]
    segment = questions.segment[1:]
    exact = torch.stack([~wrong[:, segment == index].any(1) for index in range(count)], dim=1)
    shares = {}
    for kind, name in enumerate(("code", "coarse")):
        chosen = exact[questions.kinds == kind]
        if len(chosen):
            shares[name] = round(chosen.float().mean().item(), 4)
    return shares
