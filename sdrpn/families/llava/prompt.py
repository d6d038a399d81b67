"""A question as token ids around the image: by a conversation of LLaVA's training code, or by a chat template."""

from __future__ import annotations

from tokenizers import Tokenizer

from sdrpn.families.llava.conversations import CONVERSATIONS, USUAL_CONVERSATION
from sdrpn.method.spec import PromptSpec
from sdrpn.text import prompt
from sdrpn.text.prompt import Prompt, cleaned_question
from sdrpn.text.tokenizer import encode_text

__all__ = ["build_prompt"]


def build_prompt(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> Prompt:
    """See `sdrpn.text.prompt.build_prompt`; `spec.template` may also name a conversation.

    Of that the text before and after the image is tokenised separately, after a BOS token: the ids of LLaVA's own code,
    whatever the tokenizer adds by its own rules.
    """
    conversation = CONVERSATIONS.get(spec.template or USUAL_CONVERSATION)
    if conversation is None:
        return prompt.build_prompt(tokenizer, spec, question)
    question = cleaned_question(tokenizer, spec, question)
    bos = () if spec.bos_token_id is None or spec.bos_token_id < 0 else (spec.bos_token_id,)
    before = encode_text(tokenizer, conversation.before_image)
    after = encode_text(tokenizer, f"{conversation.before_question}{question}{conversation.after_question}")
    return Prompt((*bos, *before), tuple(after))
