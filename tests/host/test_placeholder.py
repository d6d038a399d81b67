"""What stands in the place of a file is called what it is, with the command that fetches the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdrpn.host.placeholder import describe_placeholder

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 13476839424\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_in_a_checkout(tmp_path: Path, name: str) -> None:
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / name).write_bytes(LFS)
    assert describe_placeholder(folder / name) == (
        f"{folder / name} is a git-lfs pointer to the file of 13.5 GB, not the file; "
        f"fetch it: git -C '{folder}' lfs pull --include {name}"
    )


def test_a_git_lfs_pointer_that_was_copied(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(LFS.replace(b"\n", b"\r\n"))
    assert describe_placeholder(path) == (
        f"{path} is a git-lfs pointer to the file of 13.5 GB, not the file; "
        f"fetch it: hf download ORGANISATION/MODEL model.safetensors --local-dir {tmp_path}"
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>\n<html>" + b"<p>login</p>" * 500, "is a web page"),
        (b"\xef\xbb\xbf\n <HTML><body>", "is a web page"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">', "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a server's error message ('<?xml"),
        (b"Entry not found", "a server's error message ('Entry not found')"),
        (b"Invalid username or password.", "a server's error message"),
        (b"Access to model org/name is restricted. You must be logged in.", "a server's error message"),
        (b"/annex/objects/SHA256E-s13--0a.bin\n", "is a git-annex pointer"),
        (b"../.git/annex/objects/0a/1b/SHA256E-s13--0a/SHA256E-s13--0a.bin", "is a git-annex pointer"),
    ],
)
def test_other_placeholders(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    found = describe_placeholder(path)
    assert found is not None
    assert what in found
    assert "fetch" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"chat_template": "<html>"}',
        b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
        b"PK\x03\x04 version https://git-lfs.github.com/spec/v1",
        b"{% if messages %}<html>{% endif %}",
        b"\n\x0e\n\x05<unk>\x15",
    ],
)
def test_files_that_are_what_they_should_be(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert describe_placeholder(path) is None


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "fifo", Path("/dev/zero")):
        assert describe_placeholder(path) is None
