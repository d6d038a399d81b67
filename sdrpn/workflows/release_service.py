"""What a service does with releases: start the current one, confirm that it is ready, and name it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdrpn.bundle.bundle import Bundle
from sdrpn.bundle.shipped import bundle_title
from sdrpn.release.store import release_of, store_of

__all__ = ["begin_service", "confirm_service", "service_title"]


def begin_service(path: Path, note: Callable[[str], None] = lambda text: None) -> None:
    """Before a service opens a store: count its start, and go back where it was started in vain. Nothing for others.

    Args: note: called where the release before is started
    Raises: BadInput where the start cannot be counted; BadBundle
    """
    store = store_of(path)
    if store is None:
        return
    current = store.current
    started = store.starting()
    if current is not None and started.folder != current.folder:
        note(f"release {current.index.id} did not become ready; went back to {started.index.id}")


def confirm_service(bundle: Bundle) -> None:
    """The service answers with this bundle: the device keeps the release that it is part of."""
    release = release_of(bundle.path)
    store = None if release is None else store_of(release.folder.parents[1])
    if release is not None and store is not None:
        store.confirm(release.folder.name)


def service_title(bundle: Bundle) -> str:
    """By which clients ask for it: the release's name, or that of the bundle's folder."""
    release = release_of(bundle.path)
    return bundle_title(bundle.path) if release is None else release.index.name
