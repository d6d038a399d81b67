"""Pictures as base64 text: plain, wrapped, without padding, or after `data:image/png;base64,`."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from sdrpn.errors import BadImage

__all__ = ["bytes_from_base64"]

_URL_ALPHABET = str.maketrans("-_", "+/")


def bytes_from_base64(text: str, where: str) -> bytes:
    """Decode base64 text or a data: URI. Raises BadImage, whose message begins with `where`."""
    text = text.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise BadImage(f"{where} has a data: URI without a comma; expected data:image/png;base64,...")
        if not header.lower().endswith(";base64"):
            return unquote_to_bytes(text)
        text = unquote_to_bytes(text).decode("ascii", "replace") if "%" in text else text
    text = re.sub(r"\s+", "", text).translate(_URL_ALPHABET).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(f"{where} has a picture that is not base64 text ({error})") from error
