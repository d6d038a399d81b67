"""The module `sdrpn.prompt` of the previous release, for one version: its names lie in two modules now."""

from sdrpn.families.llava.prompt import build_prompt
from sdrpn.text.prompt import Prompt, TextStream, _cleaned, decode_text, load_tokenizer

__all__ = ["Prompt", "TextStream", "_cleaned", "build_prompt", "decode_text", "load_tokenizer"]
