"""Which release a device may change to, by the rules of The Update Framework. Opens no file.

A device remembers the newest version that it accepted, by which key it was signed, and the latest time that it saw.
After TUF's client workflow (theupdateframework.io, section 5): a version below the trusted one is refused (rollback);
so is an index whose `expires` has passed (freeze), at a time that is read once for the whole update; trust in a version
ends with the key that signed it (fast-forward). Going back to a release that is installed is another matter: the
device's owner asks for it, and it leaves the trusted version as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sdrpn.errors import BadBundle
from sdrpn.release.index import ReleaseIndex, time_from_text

__all__ = ["Trusted", "require_acceptable", "require_fresh"]


@dataclass(frozen=True)
class Trusted:
    """The newest release that a device accepted; key_id: None where it was not signed."""

    name: str
    version: int
    sha256: str  # of the index
    key_id: str | None


def require_fresh(index: ReleaseIndex, now: datetime, where: Path) -> None:
    """Raise BadBundle for a release that has expired."""
    if index.expires is not None and now >= time_from_text(index.expires):
        raise BadBundle(
            f"{where}: release {index.id} expired at {index.expires}; get a newer one, or correct this machine's clock"
        )


def require_acceptable(
    index: ReleaseIndex, trusted: Trusted | None, key_ids: Sequence[str], now: datetime, where: Path
) -> None:
    """Raise BadBundle for an expired release, an older one, or another one of the same version.

    Args:
        trusted: what the device accepted before
        key_ids: of the keys that it trusts now; empty: it asks for no signature
        now: the time at which the update began, or the latest that the device ever saw, if that is later
    """
    require_fresh(index, now, where)
    if trusted is None:
        return
    if index.name != trusted.name:
        raise BadBundle(
            f"{where} is a release of {index.name}; this store has {trusted.name}: install it into a store of its own"
        )
    if key_ids and trusted.key_id not in key_ids:
        return
    if index.version < trusted.version:
        raise BadBundle(
            f"{where} has version {index.version}; this device accepted {trusted.version} before, and takes no older "
            "one: pack it again with a higher version, or go back with `sdrpn release rollback`"
        )
    if index.version == trusted.version and index.sha256 != trusted.sha256:
        raise BadBundle(
            f"{where} is another release of version {index.version} than this device accepted before; pack it again "
            "with a higher version"
        )
