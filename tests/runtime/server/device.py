"""A device with an installed release, and a stand-in for the session that opened it: no model runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from sdrpn.release.store import ReleaseStore
from sdrpn.release.store_state import TrialRecord
from sdrpn.workflows.release_install import InstallRequest, install_release
from tests.release.small_releases import NOW, small_archive, small_index, write_key_pair

__all__ = ["StandInSession", "device_with_release"]


@dataclass
class StandInSession:
    """What figures read of a session."""

    path: Path
    target: str | None = "l4"
    backend: str = "tensorrt-rtx"

    @property
    def bundle(self) -> SimpleNamespace:
        return SimpleNamespace(path=self.path)

    @property
    def variant(self) -> SimpleNamespace:
        return SimpleNamespace(name="fused-int4")


def device_with_release(folder: Path, state: str = "passed") -> Path:
    """The bundle of a signed release 7 that a store below the folder has, tried with this outcome."""
    private, public = write_key_pair(folder)
    archive, expires = folder / "7.sdrpn", "2028-01-01T00:00:00Z"
    small_archive(archive, key=private, version=7, expires=expires)
    store = folder / "store"
    done = install_release(InstallRequest(archive, store, NOW, (public,), trial=False))
    ReleaseStore(store).note_attempt(
        small_index(version=7, expires=expires), NOW, TrialRecord(state, 1.5, "tensorrt-rtx fused-int4")
    )
    return Path(done.folder) / "bundle"
