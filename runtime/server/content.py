"""From the messages of a chat to a picture and a question. Reads data URLs; fetches nothing."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.requests import ImagePart, ImageUrl, Message

__all__ = ["Asked", "asked_in", "bytes_of_data_url"]

_DATA_URL = re.compile(r"data:(?P<kind>[\w.+/-]*)(?:;[\w.+=-]+)*?;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """One question about one picture."""

    image: ImageUrl
    question: str


def asked_in(messages: Sequence[Message]) -> Asked:
    """The question of a conversation. Raises Fault for what the model cannot be asked."""
    turns = [message for message in messages if message.role in ("user", "assistant")]
    if len(turns) != 1 or turns[0].role != "user" or len(turns) != len(messages):
        raise Fault(
            400,
            f"there are {len(messages)} messages; expected one of the role user: this model answers a question about "
            "a picture",
            param="messages",
        )
    content = turns[0].content
    parts = content if isinstance(content, list) else []
    images = [part.image_url for part in parts if isinstance(part, ImagePart)]
    texts = [part.text for part in parts if not isinstance(part, ImagePart)]
    if len(images) != 1:
        raise Fault(
            400,
            f"the message has {len(images) or 'no'} pictures; expected one, as a part of the type image_url",
            param="messages",
        )
    return Asked(images[0], "\n".join(texts))


def bytes_of_data_url(url: str) -> bytes:
    """The file in a data URL. Raises Fault for one that is not in base64."""
    head = _DATA_URL.match(url)
    if head is None:
        raise Fault(400, "the picture's data URL is not in base64; expected data:image/png;base64,...", "invalid_image")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Fault(400, "the picture's data URL is not valid base64", "invalid_image") from None
