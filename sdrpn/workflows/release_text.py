"""Releases as lines and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.text import Part, Table
from sdrpn.workflows.release_install import ListedRelease
from sdrpn.workflows.release_pack import PackedRelease

__all__ = ["packed_text", "releases_text"]

_COLUMNS = ("release", "version", "state", "signed by", "for", "expires", "installed", "service", "trial")


def packed_text(release: PackedRelease) -> Iterator[Part]:
    """A release in an archive or a folder."""
    signed = "nobody"
    if release.key_id is not None:
        signed = f"{release.key_id[:12]}, {'checked' if release.trusted else 'not checked: no key was named'}"
    rows = [
        ("release", f"{release.name} {release.id}"),
        ("for", ", ".join(release.targets)),
        ("created", release.created),
        ("expires", release.expires or "never"),
        ("signed by", signed),
        ("size", f"{text_from_bytes(release.size_bytes)} in {release.path}"),
    ]
    if release.missing_bytes:
        rows.append(("left out", f"{text_from_bytes(release.missing_bytes)}, which another release has"))
    yield Table("", ("", ""), rows)


def releases_text(releases: Sequence[ListedRelease]) -> Iterator[Part]:
    """The releases of a store."""
    yield Table("", _COLUMNS, [_row(release) for release in releases])


def _row(release: ListedRelease) -> tuple[str, ...]:
    trial = release.trial
    shown = "" if trial is None else trial.state if trial.backend is None else f"{trial.state}: {trial.backend}"
    return (
        f"{release.name} {release.id}",
        str(release.version),
        release.state,
        release.key_id[:12] if release.key_id else "nobody",
        ", ".join(release.targets),
        f"{release.expires or 'never'}{' (expired)' if release.expired else ''}",
        release.installed or "",
        release.result or "",
        shown,
    )
