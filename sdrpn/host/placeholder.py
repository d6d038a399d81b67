"""Recognise placeholders that a download left instead of a file: git-lfs pointers, web pages. Knows no model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sdrpn.host.sizes import text_from_bytes

__all__ = ["describe_placeholder"]

# The specification of git-lfs: a pointer is shorter than this, and its first line is the version.
_HEAD_BYTES = 1024
_LFS = re.compile(rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d")
_LFS_SIZE = re.compile(rb"^size (\d{1,18})\s*$", re.MULTILINE)
_ANNEX = re.compile(rb"(?:\.\./|\.git/|/)*annex/objects/")
_HTML = re.compile(rb"<!doctype html|<html|<head>|<\?xml[^>]*>\s*(?:<!doctype html|<html)", re.IGNORECASE)
_XML_ERROR = re.compile(rb"(?:<\?xml[^>]*>\s*)?<Error>", re.IGNORECASE)
# Error bodies of model hubs, saved by downloaders that did not check the HTTP status.
_HUB_ERROR = re.compile(
    rb"(?:entry|repository|file|revision|404:?) not found|invalid (?:username or password|credentials)"
    rb"|access to (?:model|dataset|this resource)|unauthorized|forbidden|too many requests|not found\s*$",
    re.IGNORECASE,
)


def describe_placeholder(path: Path) -> str | None:
    """Describe the placeholder at `path`, with the command that fetches the real file.

    Returns: one line that begins with the path, for an error message; None where the file is not a known placeholder:
        not a git-lfs or git-annex pointer, not a web page, not a server's error message.
    """
    head = _head(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _LFS.match(text):
        size = _LFS_SIZE.search(text)
        promised = f" of {text_from_bytes(int(size[1]))}" if size else ""
        return f"{path} is a git-lfs pointer to the file{promised}, not the file; fetch it: {_lfs_command(path)}"
    if _ANNEX.match(text):
        command = f"git -C {_quoted(path.parent)} annex get {_quoted(path.name)}"
        return f"{path} is a git-annex pointer to the file, not the file; fetch it: {command}"
    if _HTML.match(text):
        return f"{path} is a web page (HTML), not the file; fetch the file itself: {_hub_command(path)}"
    if _XML_ERROR.match(text) or (len(head) < _HEAD_BYTES and _HUB_ERROR.match(text)):
        said = " ".join(text.decode("utf-8", "replace").split())[:60]
        return f"{path} holds a server's error message ({said!r}), not the file; fetch it: {_hub_command(path)}"
    return None


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; empty for anything else, which could block a reader."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:
        return b""


def _lfs_command(path: Path) -> str:
    """The command that fetches the file: git-lfs in a git checkout, else a download from the hub."""
    if any((folder / ".git").exists() for folder in path.absolute().parents):
        return f"git -C {_quoted(path.parent)} lfs pull --include {_quoted(path.name)}"
    return _hub_command(path)


def _hub_command(path: Path) -> str:
    return f"hf download ORGANISATION/MODEL {_quoted(path.name)} --local-dir {_quoted(path.parent)}"


def _quoted(name: Path | str) -> str:
    return shlex.quote(str(name))
