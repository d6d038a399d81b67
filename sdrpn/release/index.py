"""The index of a release, `release.json`: what it is, its files, and what a device needs for it. Opens no file.

RELEASE/
├── release.json        this index
├── model.sig           the signature of all other files; absent where nobody signed
├── sbom.cdx.json       what the model consists of
├── provenance.json     what it was made from, and with what
└── bundle/             the bundle, with the engines of some targets
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sdrpn.bundle.release import BUNDLE_FOLDER, INDEX_NAME
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.json_reader import parse_json, read_dataclass, shown
from sdrpn.host.listed_files import FileInfo, require_inside

__all__ = [
    "BUNDLE_FOLDER",
    "CPU",
    "INDEX_NAME",
    "PROVENANCE_NAME",
    "RELEASE_FORMAT_VERSION",
    "SBOM_NAME",
    "SIGNATURE_NAME",
    "Needs",
    "ReleaseIndex",
    "index_from_bytes",
    "require_time",
    "text_from_time",
    "time_from_text",
]

RELEASE_FORMAT_VERSION = 1
SIGNATURE_NAME = "model.sig"
SBOM_NAME, PROVENANCE_NAME = "sbom.cdx.json", "provenance.json"
# In place of a target: ONNX Runtime on a processor.
CPU = "cpu"
# Names become names of folders.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MOST_VERSION = 2**53  # what every reader of JSON holds exactly


@dataclass(frozen=True)
class Needs:
    """What a device needs to answer in one of the ways that a release offers.

    memory_bytes: as `sdrpn plan` estimates it. The others describe engines, and are empty for a CPU.
    """

    target: str  # or CPU
    memory_bytes: int
    capabilities: tuple[str, ...] = ()  # of the GPU, one of these: SM87
    flavour: str | None = None
    library_version: str | None = None
    machine: str | None = None  # processor; None: any

    def __post_init__(self) -> None:
        if not 0 <= self.memory_bytes < _MOST_VERSION:
            raise BadInput(f"memory_bytes is {self.memory_bytes}; expected 0 or more")


@dataclass(frozen=True)
class ReleaseIndex:
    """The content of `release.json`.

    name: of the model; releases of one name replace each other
    version: grows with every release
    created, expires: UTC; after `expires` no device installs it (None: never)
    files: all but this index and the signature, by their paths in the release
    tools: libraries that made it -> version
    """

    name: str
    version: int
    created: str
    expires: str | None
    needs: tuple[Needs, ...]
    files: Mapping[str, FileInfo]
    tools: Mapping[str, str]
    format_version: int = RELEASE_FORMAT_VERSION

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInput(
                f"name is {shown(self.name)}; expected small letters, digits, dots, dashes and underscores, at most 64",
                options=("name",),
            )
        if not 1 <= self.version < _MOST_VERSION:
            raise BadInput(f"version is {self.version}; expected 1 to {_MOST_VERSION - 1}", options=("version",))
        require_time("created", self.created)
        if self.expires is not None:
            require_time("expires", self.expires)
            if self.expires <= self.created:
                raise BadInput(f"expires is {self.expires}; expected a time after {self.created}, when it was created")
        if not self.needs:
            raise BadInput("needs are empty; expected at least one way to answer")

    @property
    def sizes(self) -> dict[str, int]:
        """SHA-256 -> size in bytes of each content; files of equal content share one."""
        return {file.sha256: file.size_bytes for file in self.files.values()}

    @property
    def size_bytes(self) -> int:
        """Size of all contents, each counted once."""
        return sum(self.sizes.values())

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return (json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def id(self) -> str:
        """By which a release is named: VERSION-DIGEST; the name of its folder on a device."""
        return f"{self.version}-{self.sha256[:12]}"

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that is signed, the index itself included."""
        return {INDEX_NAME: self.sha256, **{name: file.sha256 for name, file in self.files.items()}}


def index_from_bytes(content: bytes, where: Path) -> ReleaseIndex:
    """Read an index. Raises BadBundle for one that is not exactly as `to_bytes` writes it."""
    advice = "get the release again"
    try:
        value = parse_json(content)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != RELEASE_FORMAT_VERSION:
            raise BadBundle(
                f"{where}: {INDEX_NAME} has format version {shown(version)}, this release of sdrpn reads "
                f"{RELEASE_FORMAT_VERSION}; update sdrpn, or pack the bundle again"
            )
        index = read_dataclass(ReleaseIndex, value)
    except BadBundle:
        raise
    except BadInput as error:
        raise BadBundle(f"{where}: {INDEX_NAME} cannot be understood ({error}); {advice}") from error
    for name in index.files:
        if name in (INDEX_NAME, SIGNATURE_NAME) or require_inside(where, name).as_posix() != name:
            raise BadBundle(
                f"{where}: {INDEX_NAME} lists {shown(name)}; expected a plain path in the release; {advice}"
            )
    if index.to_bytes() != content:
        raise BadBundle(f"{where}: {INDEX_NAME} was changed, or written by something else; {advice}")
    return index


def require_time(what: str, text: str) -> None:
    """Raise BadInput for a text that is not a time in UTC, such as 2027-01-31T12:00:00Z."""
    if _TIME.fullmatch(text):
        try:
            time_from_text(text)
        except ValueError:
            pass
        else:
            return
    raise BadInput(f"{what} is {shown(text)}; expected a time in UTC, such as 2027-01-31T12:00:00Z")


def time_from_text(text: str) -> datetime:
    """The inverse of `text_from_time`."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def text_from_time(time: datetime) -> str:
    """In UTC, to the second, as RFC 3339 writes it."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
