"""What a device remembers about its releases: `state.json` of a store, checked and written atomically."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_reader import read_dataclass, shown
from sdrpn.host.links import link_roots
from sdrpn.host.listed_files import read_manifest
from sdrpn.release.index import require_time
from sdrpn.release.trust import Trusted

__all__ = ["Attempt", "Pending", "Record", "StoreState", "TrialRecord", "read_state", "write_state"]

STATE_FORMAT_VERSION = 1
_ADVICE = "make a new store, and install the release into it"


@dataclass(frozen=True)
class Pending:
    """A release that the device changed to, and whose service has not been ready yet. starts: of the service since."""

    release: str
    starts: int = 0


@dataclass(frozen=True)
class TrialRecord:
    """What came of running a release once. state: passed, not tried (and why), or failed (and why)."""

    state: str
    seconds: float | None = None
    backend: str | None = None  # library and variant or target
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What became of a release on this device. result: installed, ready, or failed (and why)."""

    installed: str
    result: str
    trial: TrialRecord


@dataclass(frozen=True)
class Attempt:
    """The newest install whose release was accepted, whether or not its trial let it stay."""

    release: str
    version: int
    time: str
    trial: TrialRecord

    def __post_init__(self) -> None:
        require_time("time", self.time)


@dataclass(frozen=True)
class StoreState:
    """The content of `state.json`.

    trusted: the newest release that was accepted. key_ids: of the keys that an install has to ask for; empty: none yet.
    latest: the latest time that the device saw, so that a clock that was set back makes no release fresh again.
    """

    trusted: Trusted | None = None
    key_ids: tuple[str, ...] = ()
    latest: str | None = None
    pending: Pending | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    attempt: Attempt | None = None
    format_version: int = STATE_FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.latest is not None:
            require_time("latest", self.latest)

    def with_record(self, release: str, **changes: Any) -> StoreState:
        """The same with an entry of a release's record changed; without one, unchanged."""
        if release not in self.records:
            return self
        record = dataclasses.replace(self.records[release], **changes)
        return dataclasses.replace(self, records={**self.records, release: record})


def read_state(path: Path) -> StoreState:
    """Read a state; an empty one where there is none. Raises BadBundle."""
    if not path.exists():
        return StoreState()
    value = read_manifest(path, link_roots(path.parent), _ADVICE)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != STATE_FORMAT_VERSION:
        raise BadBundle(
            f"{path} has format version {shown(version)}, this release of sdrpn reads {STATE_FORMAT_VERSION}; {_ADVICE}"
        )
    try:
        return read_dataclass(StoreState, value)
    except BadInput as error:
        raise BadBundle(f"{path} cannot be understood ({error}); {_ADVICE}") from error


def write_state(path: Path, state: StoreState) -> None:
    """Write a state atomically. Raises BadInput or RunFailed."""
    text = json.dumps(dataclasses.asdict(state), indent=1, sort_keys=True) + "\n"
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
