"""Options of which one excludes another: refused wherever they are put together, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from sdrpn.errors import BadInput
from sdrpn.runtime.backends.info import OpenOptions
from sdrpn.runtime.opening import RunOptions


@pytest.mark.parametrize("made", [OpenOptions, RunOptions])
class TestExclusions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"vision_type": "bf16", "accurate": True}, "vision_type is bf16, and accurate computes in fp32"),
            ({"activation_block": 16, "accurate": True}, "activation_block is 16, and accurate keeps activations as"),
            ({"decode_copy": True, "accurate": True}, "decode_copy is True, and accurate keeps activations as floats,"),
            ({"decode_copy": True, "activation_block": 16}, "decode_copy is True, and activation_block is not for"),
            ({"decode_copy": True, "activation_block": 0}, "decode_copy is True, and activation_block is not for"),
        ],
    )
    def test_two_that_exclude_each_other(self, made: type[Any], options: dict[str, Any], message: str) -> None:
        with pytest.raises(BadInput, match=f"^{message}.*; leave one of them out$") as caught:
            made(**options)
        assert caught.value.options == tuple(options)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"accurate": True, "activation_block": 0},  # floats, both
            {"accurate": True, "decode_copy": False},
            {"activation_block": 16, "decode_copy": False},
            {"vision_type": "bf16", "activation_block": 16, "kv_cache": "int8"},
            {"vision_type": "bf16", "decode_copy": True},
        ],
    )
    def test_two_that_do_not(self, made: type[Any], options: dict[str, Any]) -> None:
        made(**options)
