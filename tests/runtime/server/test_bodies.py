"""The JSON of a request is what json.loads makes of it, whatever is cut out before; many values are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdrpn.runtime.server import bodies
from sdrpn.runtime.server.bodies import read_json
from sdrpn.runtime.server.faults import Fault

PICTURE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 100).decode()
LONG = {"plain": PICTURE, "escaped": PICTURE + '"\\', "other": "ä" + PICTURE, "accented": PICTURE + "é"}
STRINGS = st.one_of(st.text(max_size=8), st.sampled_from([*LONG.values(), "data:", 'a"data:', "\\"]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(STRINGS, inner, max_size=4)),
    max_leaves=12,
)


@given(value=VALUES, ascii_only=st.booleans())
def test_a_body_is_what_its_parser_reads(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert read_json(body) == json.loads(body)


@given(value=VALUES, place=st.integers(0, 40_000), piece=st.sampled_from([b'"', b"\\", b",", b"{", b"", b"\x00"]))
def test_a_damaged_body_is_refused_or_read_as_its_parser_does(value: Any, place: int, piece: bytes) -> None:
    body = json.dumps(value).encode()
    body = body[:place] + piece + body[place + 1 :]
    try:
        expected = json.loads(body)
    except ValueError:
        if piece != b"\x00":  # of a control character in a long picture base64 says more
            with pytest.raises(Fault, match="not JSON"):
                read_json(body)
    else:
        assert read_json(body) == expected


def test_a_picture_is_cut_out() -> None:
    body = json.dumps([PICTURE, {"a": PICTURE}]).encode()
    rest, found = bodies._cut_out(body)
    assert (len(found), set(found.values())) == (2, {PICTURE})
    assert len(rest) < 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"{}," * 60_000 + b"{}]}",
        b"[" * 60_000 + b"]" * 60_000,
        json.dumps({f"name{number}": 1 for number in range(30_000)}).encode(),
    ],
)
def test_many_values_are_refused(body: bytes) -> None:
    with pytest.raises(Fault, match="the limit is 50,000") as found:
        read_json(body)
    assert found.value.status == 413


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Expecting value at character 0"),
        (b'{"a": "' + PICTURE.encode() + b'" x}', f"Expecting ',' delimiter at character {len(PICTURE) + 9}"),
        (b"[" * 40_000, "nested too deeply"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"9" * 5000, "cannot be read"),
    ],
)
def test_what_is_not_json(body: bytes, message: str) -> None:
    with pytest.raises(Fault, match=f"the body is not JSON: .*{message}") as found:
        read_json(body)
    assert found.value.status == 400
