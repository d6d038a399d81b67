"""A conversation as token ids around images: by one of LLaVA's training code, or by a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from sdrpn.errors import BadInput
from sdrpn.families.llava.conversations import CONVERSATIONS, USUAL_CONVERSATION, Conversation
from sdrpn.method.spec import PromptSpec
from sdrpn.text import prompt
from sdrpn.text.prompt import Pieces, Prompt, cleaned_turns
from sdrpn.text.tokenizer import encode_text
from sdrpn.text.turns import Turn

__all__ = ["build_pieces", "build_prompt"]


def build_prompt(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> Prompt:
    """As `build_pieces`, of one question about one image."""
    before, after = build_pieces(tokenizer, spec, (Turn("user", question, images=1),))
    return Prompt(before, after)


def build_pieces(tokenizer: Tokenizer, spec: PromptSpec, turns: Sequence[Turn]) -> Pieces:
    """See `sdrpn.text.prompt.build_pieces`; `spec.template` may also name a conversation.

    Of that the texts between images are tokenised separately, after a BOS token: the ids of LLaVA's own code, whatever
    the tokenizer adds by its own rules.
    """
    name = spec.template or USUAL_CONVERSATION
    conversation = CONVERSATIONS.get(name)
    if conversation is None:
        return prompt.build_pieces(tokenizer, spec, turns)
    texts = _texts(conversation, name, cleaned_turns(tokenizer, spec, turns))
    bos = () if spec.bos_token_id is None or spec.bos_token_id < 0 else (spec.bos_token_id,)
    first, *rest = (tuple(encode_text(tokenizer, text)) for text in texts)
    return ((*bos, *first), *rest)


def _texts(conversation: Conversation, name: str, turns: Sequence[Turn]) -> list[str]:
    """The texts before, between and after the images. Raises BadInput for turns that the conversation does not have."""
    if turns[0].role == "system":
        raise BadInput(f"the conversation {name!r} has its own system text; leave the system turn out")
    texts = [conversation.before_image]
    for place, turn in enumerate(turns):
        if turn.role == "assistant":
            if conversation.around_answer is None:
                raise BadInput(f"the conversation {name!r} has one turn only; ask without a history")
            before, after = conversation.around_answer
            texts[-1] += f"{before}{turn.text}{after}"
            continue
        for _ in range(turn.images):
            texts.append(conversation.before_question)
        if place == 0 and not turn.images and conversation.before_question != "\n":
            raise BadInput(f"the conversation {name!r} begins with an image; pass one")
        texts[-1] += f"{turn.text}{conversation.after_question}"
    return texts
