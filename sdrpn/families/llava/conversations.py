"""The prompts that LLaVA's training code knows by name: the text before the image and around the question.

The texts are exactly those that the models were trained with (LLaVA's `conv_templates`), including spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CONVERSATIONS", "USUAL_CONVERSATION", "Conversation"]


@dataclass(frozen=True)
class Conversation:
    """The first turn of a conversation, up to where the model answers; without the BOS token.

    around_answer: what stands before an answer, and from there up to the next question; None: one turn is all
    """

    before_image: str
    before_question: str
    after_question: str
    around_answer: tuple[str, str] | None = None


_CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_IMAGE_TAGS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
# The two spaces after "safe." are in the original.
_LLAMA_2_CHAT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."


def _turns(system: str, user: str, assistant: str, separators: tuple[str, str]) -> Conversation:
    """A conversation whose roles end with a colon; the separators after the user and after the assistant."""
    after_user, after_assistant = separators
    answered = " ", f"{after_assistant}{user}: "
    return Conversation(f"{system}{after_user}{user}: ", "\n", f"{after_user}{assistant}:", answered)


def _turns_with_tags(system: str, user: str, assistant: str, separators: tuple[str, str]) -> Conversation:
    """A conversation in which the image is a separate turn that the assistant answers with "Received."."""
    after_user, after_assistant = separators
    received = f"</Image>{after_user}{assistant}: Received.{after_assistant}{user}: "
    return Conversation(f"{system}{after_user}{user}: <Image>", received, f"{after_user}{assistant}:")


def _llama_2(system: str) -> Conversation:
    system = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    return Conversation(f"[INST] {system}", "\n", " [/INST]", (" ", " </s><s>[INST] "))


def _chatml(system: str) -> Conversation:
    user, assistant = "<|im_end|><|im_start|>user\n", "<|im_end|><|im_start|>assistant\n"
    return Conversation(f"<|im_start|>system\n{system}{user}", "\n", assistant, ("", user))


_VICUNA_V1 = _turns(_CURIOUS_USER, "USER", "ASSISTANT", (" ", "</s>"))
_PLAIN = Conversation("", "\n", "\n")
_CHATML = _chatml("Answer the questions.")

CONVERSATIONS: Mapping[str, Conversation] = {
    "vicuna_v1": _VICUNA_V1,  # LLaVA-1.5
    "v1": _VICUNA_V1,
    "llava_v1": _turns(_CURIOUS_HUMAN, "USER", "ASSISTANT", (" ", "</s>")),
    "v1_mmtag": _turns_with_tags(_IMAGE_TAGS, "USER", "ASSISTANT", (" ", "</s>")),
    "llava_v0": _turns(_CURIOUS_HUMAN, "Human", "Assistant", ("###", "###")),
    "v0_mmtag": _turns_with_tags(_IMAGE_TAGS, "Human", "Assistant", ("###", "###")),
    "llama_2": _llama_2(_LLAMA_2_CHAT),
    "llava_llama_2": _llama_2(_LANGUAGE_AND_VISION),
    "mistral_instruct": _llama_2(""),
    "mistral_direct": _CHATML,
    "chatml_direct": _CHATML,
    "mpt": _chatml(_MPT),
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
}
USUAL_CONVERSATION = "vicuna_v1"  # of a checkpoint that does not say it
