"""Keys of clients: every key of the file is accepted, nothing else is, and no key is ever shown."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.host.api_keys import read_api_keys

FIRST, SECOND = "0123456789abcdef", "fedcba9876543210-rotated"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# of the line\n{FIRST}\n\n  {SECOND}  \n", "utf-8")
    return path


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_every_key_is_accepted(file: Path, key: str) -> None:
    assert read_api_keys(file).accept(key)
    assert read_api_keys(file).accept_header(f"Bearer {key}")
    assert read_api_keys(file).accept_header(f"bearer {key}")


@pytest.mark.parametrize("key", ["", None, FIRST[:-1], f"{FIRST}0", "# of the line", FIRST.upper(), "\udcff", "é"])
def test_nothing_else_is(file: Path, key: str | None) -> None:
    assert not read_api_keys(file).accept(key)


@pytest.mark.parametrize("header", [None, "", FIRST, f"Basic {FIRST}", f"Bearer{FIRST}", "Bearer ", "Bearer"])
def test_headers_without_a_key(file: Path, header: str | None) -> None:
    assert not read_api_keys(file).accept_header(header)


def test_every_key_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = read_api_keys(file)
    compared = []

    def compare(key: bytes, given: bytes) -> bool:
        compared.append(key)
        return key == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.accept(FIRST)
    assert len(compared) == 2


def test_keys_are_not_shown(file: Path) -> None:
    assert FIRST not in repr(read_api_keys(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key; make one with: openssl rand -hex 32"),
        ("# only a comment\n", "has no key"),
        (f"{FIRST}\nshort\n", "line 2 of the file of API keys .* is not a key of at least 16 ASCII characters"),
        ("two words of a key\n", "line 1 of the file of API keys .* is not a key of at least 16 ASCII characters"),
        (f"{FIRST}é\n", "line 1 .* is not a key of at least 16 ASCII characters"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInput, match=message) as caught:
        read_api_keys(path)
    assert FIRST not in str(caught.value)
    assert "two words" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be read \(No such file or directory\); name a file with a key"):
        read_api_keys(tmp_path / "keys")


def test_a_file_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not UTF-8 text; expected a key per line"):
        read_api_keys(tmp_path / "keys")
