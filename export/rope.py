"""The rotary frequencies that a bundle keeps."""

from __future__ import annotations

from sdrpn.host.libraries import installed_version
from sdrpn.method.rope import RotaryFrequencies, rotary_frequencies, rotary_powers
from sdrpn.method.spec import LlmSpec

__all__ = ["exported_frequencies"]


def exported_frequencies(llm: LlmSpec) -> RotaryFrequencies:
    """With the bits that transformers computes, where torch is installed.

    Without it from correctly rounded powers, which differ from torch's by one unit in the last place in one of some two
    hundred (in none at theta 10,000 and heads of 128 channels, which LLaVA-1.5 has).
    """
    if installed_version("torch") is None:
        return rotary_frequencies(llm, rotary_powers(llm))
    from sdrpn.model.layers import frequencies

    return frequencies(llm)
