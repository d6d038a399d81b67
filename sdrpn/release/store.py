"""The releases of a device: side by side in one folder, one of them current, the one before it kept.

STORE/
├── releases/VERSION-DIGEST/    a release each; several share a file through hard links
├── current -> releases/...     which release answers: the one truth about it, changed by one rename
├── previous -> releases/...    the one before
└── state.json                  what the device remembers: trusted version, trials, a release that is not ready yet

At any moment, also if the power goes, `current` leads to a complete release. A release that the device changed to is
pending until its service was ready; a service that starts again with it goes back.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sdrpn.bundle.release import CURRENT, INDEX_NAME
from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.host.file_lock import lock_file
from sdrpn.host.partial import remove_partial, temporary_beside
from sdrpn.release.index import ReleaseIndex, text_from_time, time_from_text
from sdrpn.release.installed import InstalledRelease, read_installed
from sdrpn.release.store_state import Attempt, Pending, Record, StoreState, TrialRecord, read_state, write_state
from sdrpn.release.trust import Trusted

__all__ = ["ReleaseStore", "release_of", "store_of"]

PREVIOUS = "previous"
_RELEASES, _STATE = "releases", "state.json"
# A pending release may be started so often; the next start goes back. Two: the power may go once.
_MOST_STARTS = 2


class ReleaseStore:
    """A folder of releases, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def current(self) -> InstalledRelease | None:
        """The release that answers; None: nothing was installed."""
        return self._linked(CURRENT)

    @property
    def previous(self) -> InstalledRelease | None:
        """The one before; None: there is none to go back to."""
        found = self._linked(PREVIOUS)
        current = self._linked(CURRENT)
        return None if found is None or (current is not None and current.folder == found.folder) else found

    @property
    def state(self) -> StoreState:
        """What the device remembers. Raises BadBundle."""
        return read_state(self.path / _STATE)

    def folder_of(self, index: ReleaseIndex) -> Path:
        """Where a release lies, once it is installed."""
        return self.path / _RELEASES / index.id

    def releases(self) -> Iterator[InstalledRelease]:
        """Every installed release, the current one first. What cannot be read as one is left out."""
        folders = [found.folder for found in (self.current, self.previous) if found is not None]
        folders += sorted(path for path in (self.path / _RELEASES).glob("*") if not path.name.startswith("."))
        for folder in dict.fromkeys(folders):
            with suppress(BadInput):
                yield read_installed(folder)

    def time(self, now: datetime) -> datetime:
        """`now`, or the latest time that the device saw, if that is later."""
        latest = self.state.latest
        return now if latest is None else max(now, time_from_text(latest))

    # Installing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Inside the block nobody else installs; leftovers of interrupted installs are removed.

        Raises: BadInput where the folder cannot be written; RunFailed while another install runs
        """
        try:
            (self.path / _RELEASES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{self.path} cannot be written ({error.strerror}); name another store") from error
        with self._locked(".install.lock", wait=False):
            with self._locked(".state.lock", wait=True):  # a service may be writing the state
                for leftover in self.path.glob(".*.partial"):
                    remove_partial(leftover)
            for leftover in (self.path / _RELEASES).glob(".*.partial"):
                remove_partial(leftover)
            yield

    def remember(
        self, index: ReleaseIndex, key_id: str | None, key_ids: tuple[str, ...], now: datetime, trial: TrialRecord
    ) -> None:
        """Note that a release was accepted and lies in its folder."""
        with self._changing() as state:
            record = Record(text_from_time(now), "installed", trial)
            trusted = Trusted(index.name, index.version, index.sha256, key_id)
            self._write(
                dataclasses.replace(
                    state,
                    trusted=trusted,
                    key_ids=key_ids or state.key_ids,
                    latest=text_from_time(self.time(now)),
                    records={**state.records, index.id: record},
                )
            )

    def note_attempt(self, index: ReleaseIndex, now: datetime, trial: TrialRecord) -> None:
        """Note that a release was accepted and tried, so that the device shows it also where it did not stay."""
        with self._changing() as state:
            attempt = Attempt(index.id, index.version, text_from_time(now), trial)
            self._write(dataclasses.replace(state, attempt=attempt))

    def change_to(self, release: str) -> None:
        """Make an installed release the current one, pending until `confirm`, and keep the one before."""
        with self._changing() as state:
            self._write(dataclasses.replace(state, pending=Pending(release)))
            self._switch(state, release)

    def confirm(self, release: str) -> None:
        """Note that the service of this release was ready; nothing if it is not pending."""
        pending = self.state.pending
        if pending is None or pending.release != release:
            return
        with self._changing() as state:
            self._write(dataclasses.replace(state, pending=None).with_record(release, result="ready"))

    def go_back(self, reason: str) -> InstalledRelease | None:
        """Return to the release before the current one, which failed; None: there is none. It is not kept."""
        with self._changing() as state:
            return self._go_back(state, reason)

    def roll_back(self) -> InstalledRelease:
        """Exchange the current release and the one before, as the owner asks for it. Raises BadInput without one."""
        previous = self.previous
        if previous is None:
            raise BadInput(f"{self.path} has no release to go back to; install one")
        try:
            previous.verify()
        except BadBundle as error:
            raise BadBundle(f"the release before cannot be used, and nothing was changed: {error}") from error
        with self._changing() as state:
            self._write(dataclasses.replace(state, pending=None))
            self._switch(state, previous.folder.name)
        return previous

    def prune(self) -> None:
        """Remove releases that are neither current nor kept, and what the state remembers of them."""
        kept = {found.folder.name for found in (self.current, self.previous) if found is not None}
        for folder in (self.path / _RELEASES).iterdir():
            if folder.name not in kept and not folder.name.startswith("."):
                self.remove(folder)
        with self._changing() as state:
            self._write(
                dataclasses.replace(state, records={name: r for name, r in state.records.items() if name in kept})
            )

    def remove(self, folder: Path) -> None:
        """Remove a release: first its name, so that half of it is never taken for a release."""
        temporary = temporary_beside(folder)
        folder.rename(temporary)
        remove_partial(temporary)

    # The service -----------------------------------------------------------------------------------------------------

    def starting(self) -> InstalledRelease:
        """The release that a service that starts now should open; goes back where it was started before in vain.

        Raises: BadInput where nothing was installed; BadBundle
        """
        current = self.current
        if current is None:
            raise BadInput(f"{self.path} has no release; install one: `sdrpn release install`")
        pending = self.state.pending
        if pending is None or pending.release != current.index.id:
            return current
        with self._changing() as state:
            if pending.starts >= _MOST_STARTS:
                return self._go_back(state, "its service was started and did not become ready") or current
            self._write(dataclasses.replace(state, pending=Pending(pending.release, pending.starts + 1)))
        return current

    # Links and locks -------------------------------------------------------------------------------------------------

    def _go_back(self, state: StoreState, reason: str) -> InstalledRelease | None:
        current, previous = self.current, self.previous
        if current is not None:
            state = state.with_record(current.index.id, result=f"failed: {reason}")
        if previous is None:
            self._write(dataclasses.replace(state, pending=None))
            return None
        self._point(CURRENT, previous.folder.name)
        with suppress(FileNotFoundError):
            (self.path / PREVIOUS).unlink()
        self._write(dataclasses.replace(state, pending=None))
        return previous

    def _switch(self, state: StoreState, release: str) -> None:
        """Point `current` to a release, and `previous` to the one to go back to, which goes first: the power may go
        between the two, and then both name the same release for a moment."""
        current, previous = self.current, self.previous
        if current is None or current.folder.name == release:
            self._point(CURRENT, release)
        elif previous is not None and previous.folder.name == release:  # exchanged: none is lost
            self._point(CURRENT, release)
            self._point(PREVIOUS, current.folder.name)
        else:
            never_ready = state.pending is not None and state.pending.release == current.folder.name
            if previous is None or not never_ready or not _was_ready(state, previous):
                self._point(PREVIOUS, current.folder.name)
            self._point(CURRENT, release)

    def _linked(self, name: str) -> InstalledRelease | None:
        link = self.path / name
        if not link.is_symlink():
            return None
        return read_installed(self.path / _RELEASES / link.readlink().name)

    def _point(self, name: str, release: str) -> None:
        temporary = self.path / f".{name}.{secrets.token_hex(4)}.partial"
        try:
            temporary.symlink_to(Path(_RELEASES) / release)
            temporary.replace(self.path / name)
        except OSError as error:
            remove_partial(temporary)
            raise RunFailed(f"{self.path / name} cannot be changed ({error.strerror}); check the store") from error
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _changing(self) -> Iterator[StoreState]:
        with self._locked(".state.lock", wait=True):
            yield self.state

    def _write(self, state: StoreState) -> None:
        write_state(self.path / _STATE, state)

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[None]:
        """A lock that ends with the process."""
        try:
            descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BadInput(f"{self.path} cannot be written ({error.strerror}); name another store") from error
        try:
            if lock_file(descriptor, wait=wait) == "elsewhere":
                raise RunFailed(f"another install into {self.path} is running; wait until it has ended")
            yield
        finally:
            os.close(descriptor)


def _was_ready(state: StoreState, release: InstalledRelease) -> bool:
    record = state.records.get(release.folder.name)
    return record is not None and record.result == "ready"


def release_of(bundle: Path) -> InstalledRelease | None:
    """The release that a bundle's folder is part of; None: it is none's. Raises BadBundle."""
    folder = bundle.parent
    return read_installed(folder) if (folder / INDEX_NAME).is_file() else None


def store_of(path: Path) -> ReleaseStore | None:
    """The store that a path names; None for anything else, such as a bundle or one release."""
    return ReleaseStore(path) if (path / CURRENT).is_symlink() else None
