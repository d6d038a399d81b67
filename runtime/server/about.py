"""What a server answers with, as figures for a fleet: release, engines, libraries, the last trial. Runs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from sdrpn.errors import SdrpnError
from sdrpn.host.library_versions import library_versions
from sdrpn.release.index import time_from_text
from sdrpn.release.installed import InstalledRelease
from sdrpn.release.store import release_of, store_of
from sdrpn.release.store_state import StoreState
from sdrpn.runtime.session import Session

__all__ = ["About"]


class About:
    """Metrics whose value is 1 and whose labels say what there is, and numbers of the release; read at each scrape.

    Those of a release are absent where the bundle is not part of one, and those of its trial where no store has it.
    """

    def __init__(self, model: str, session: Callable[[], Session]) -> None:
        """Args: session: that which answers new requests"""
        self._model, self._session, self._libraries = model, session, library_versions()

    def collect(self) -> Iterator[Metric]:
        """As prometheus-client calls it."""
        session = self._session()
        yield self._info(
            "sdrpn:engine_info",
            "The library that runs the model, the variant, and the target of its engines.",
            [{"backend": session.backend, "variant": session.variant.name, "target": session.target or ""}],
        )
        yield self._info(
            "sdrpn:library_info",
            "The version of each library that decides what the model answers.",
            [{"library": name, "version": version} for name, version in self._libraries.items()],
        )
        with suppress(SdrpnError):  # what was damaged meanwhile does not take the other figures along
            release = release_of(session.bundle.path)
            if release is not None:
                yield from self._of_release(release)

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when it is registered."""
        return ()

    def _of_release(self, release: InstalledRelease) -> Iterator[Metric]:
        index = release.index
        store = store_of(release.folder.parents[1])
        state = StoreState() if store is None else store.state
        pending = state.pending is not None and state.pending.release == index.id
        labels = {
            "release": index.id,
            "version": str(index.version),
            "name": index.name,
            "signed_by": (release.key_id or "")[:12],
            "state": "pending" if pending else "current",
        }
        yield self._info("sdrpn:release_info", "The release that answers.", [labels])
        yield self._number("sdrpn:release_version", "Its version.", index.version)
        if index.expires is not None:
            expires = time_from_text(index.expires).timestamp()
            yield self._number("sdrpn:release_expires_timestamp_seconds", "When devices stop installing it.", expires)
        attempt = state.attempt
        if attempt is None:
            return
        outcome, _, reason = attempt.trial.state.partition(": ")
        labels = {"release": attempt.release, "result": outcome, "reason": reason, "ran": attempt.trial.backend or ""}
        yield self._info("sdrpn:last_trial_info", "The newest trial of a release on this device.", [labels])
        passed = outcome == "passed"
        yield self._number("sdrpn:last_trial_passed", "1: it passed; 0: it failed, or was not run.", passed)
        when = time_from_text(attempt.time).timestamp()
        yield self._number("sdrpn:last_trial_timestamp_seconds", "When it was.", when)

    def _info(self, name: str, text: str, entries: Iterable[Mapping[str, str]]) -> Metric:
        entries = list(entries)
        names = tuple(entries[0]) if entries else ()
        found = GaugeMetricFamily(name, text, labels=("model_name", *names))
        for entry in entries:
            found.add_metric((self._model, *entry.values()), 1)
        return found

    def _number(self, name: str, text: str, value: float) -> Metric:
        found = GaugeMetricFamily(name, text, labels=("model_name",))
        found.add_metric((self._model,), float(value))
        return found
