"""The rotary frequencies that a bundle keeps."""

from __future__ import annotations

from sdrpn.host.libraries import installed_version
from sdrpn.method.rope import RotaryFrequencies, rotary_frequencies, rotary_powers
from sdrpn.method.spec import LlmSpec

__all__ = ["exported_frequencies"]


def exported_frequencies(llm: LlmSpec) -> RotaryFrequencies:
    """The frequencies with transformers' bits, if torch is installed.

    Without torch they come from correctly rounded powers, of which about one in two hundred differs from torch's by one
    unit in the last place (none for LLaVA-1.5's theta of 10,000 and heads of 128 channels).
    """
    if installed_version("torch") is None:
        return rotary_frequencies(llm, rotary_powers(llm))
    from sdrpn.model.layers import frequencies

    return frequencies(llm)
