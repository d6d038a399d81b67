"""From the messages of a chat to pictures and the turns of a conversation. Reads no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.requests import ImagePart, ImageUrl, Message
from sdrpn.text.turns import Role, Turn, conversation

__all__ = ["Asked", "asked_in"]

_ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Asked:
    """A question about pictures, and the conversation that ends with it; `turns` is None where there is no other."""

    images: tuple[ImageUrl, ...]
    question: str
    turns: tuple[Turn, ...] | None = None

    @property
    def text_bytes(self) -> int:
        """The size of all texts, which no tokenizer makes more tokens of."""
        texts = [self.question] if self.turns is None else [turn.text for turn in self.turns]
        return sum(len(text.encode(errors="replace")) for text in texts)


def asked_in(messages: Sequence[Message], most_images: int) -> Asked:
    """The question of a conversation. Raises Fault or BadInput for what no model can be asked."""
    images: list[ImageUrl] = []
    turns: list[Turn] = []
    for message in messages:
        parts = message.content if isinstance(message.content, list) else []
        shown = [part.image_url for part in parts if isinstance(part, ImagePart)]
        texts = [part.text for part in parts if not isinstance(part, ImagePart)]
        text = message.content if isinstance(message.content, str) else "\n".join(texts)
        turns.append(Turn(_ROLES[message.role], text, len(shown)))
        images += shown
    if turns[-1].role != "user":
        raise Fault(
            400, f"the last message is the {turns[-1].role}'s; expected a question of the user", param="messages"
        )
    if len(images) > most_images:
        raise Fault(400, f"the messages have {len(images)} pictures; the limit is {most_images}", param="messages")
    question = turns[-1].text
    conversation(question, turns[:-1], len(images))  # refuses another order
    return Asked(tuple(images), question, tuple(turns) if len(turns) > 1 else None)
