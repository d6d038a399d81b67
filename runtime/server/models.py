"""The model that answers, and its replacement while requests run: each is finished by the one that it began on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdrpn.errors import RunFailed
from sdrpn.runtime.server.faults import Fault, fault_from_error
from sdrpn.runtime.server.grammar import Grammars
from sdrpn.runtime.server.trial import Trial, TrialLimit
from sdrpn.runtime.session import Session

__all__ = ["LoadedModel", "Models", "Reopening"]


class LoadedModel:
    """A session, and how many requests use it."""

    def __init__(self, session: Session, generation: int) -> None:
        self.session, self.generation, self.users, self.retired = session, generation, 0, False
        manifest = session.bundle.manifest
        self.fingerprint = f"sdrpn-{_digest(session)}"
        tokenizer = None if manifest.tokenizer is None else session.bundle.file(manifest.tokenizer)
        spec = session.spec
        self.grammars = Grammars(tokenizer or Path(), spec.llm.vocabulary, spec.prompt.eos_token_ids)


@dataclass(frozen=True)
class Reopening:
    """How a bundle is opened again. Both are called in a thread, and may raise: the former model stays then.

    accept: called with the session after its trial, before it answers anybody
    """

    open: Callable[[], Session]
    accept: Callable[[Session], None] = lambda session: None


class Models:
    """The current model; lives in one event loop but for `close`."""

    def __init__(self, session: Session, reopening: Reopening | None, limit: TrialLimit) -> None:
        """Args: reopening: None: it cannot be replaced. limit: of the trial of another one"""
        self._current, self._reopening, self._first = LoadedModel(session, 1), reopening, session
        self._limit = limit
        self._former: list[LoadedModel] = []  # which finish what they began
        self._busy = False
        self._trial: Trial | None = None

    @property
    def current(self) -> LoadedModel:
        """The one for new requests."""
        return self._current

    @property
    def answering(self) -> tuple[LoadedModel, ...]:
        """The current one, and former ones that finish what they began."""
        return (self._current, *self._former)

    @contextmanager
    def used(self) -> Iterator[LoadedModel]:
        """The current one, which stays open within the block."""
        model = self._current
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            self._close_if_idle(model)

    async def reload(self) -> LoadedModel:
        """Open the bundle again, try it, and let it answer from now on. Raises Fault; the old one stays then."""
        if self._reopening is None:
            raise Fault(501, "this server was started in a program, which alone can replace the model", "no_reload")
        if self._busy:
            raise Fault(409, "another reload is in progress", "reload_in_progress")
        if self._trial is not None and not self._trial.is_over:
            raise Fault(
                409, "a graph of the last reload still runs; restart the server to end it", "reload_in_progress"
            )
        self._busy, self._trial = True, Trial(self._reopening.open, self._reopening.accept, self._limit)
        try:
            opened = await self._trial.session()
        except Exception as error:
            why = fault_from_error(error).message if not isinstance(error, RunFailed) else str(error)
            raise Fault(
                422, f"the bundle was not reloaded, and the former one still answers: {why}", "reload_failed"
            ) from error
        finally:
            self._busy = False
        before, self._current = self._current, LoadedModel(opened, self._current.generation + 1)
        before.retired = True
        self._former.append(before)
        self._close_if_idle(before)
        return self._current

    def close(self) -> None:
        """Close the session that replaced the first one, which is its opener's."""
        if self._current.session is not self._first:
            self._current.session.close()

    def _close_if_idle(self, model: LoadedModel) -> None:
        if model.retired and not model.users:
            self._former.remove(model)
            threading.Thread(target=model.session.close, name="sdrpn close").start()


def _digest(session: Session) -> str:
    """Tells bundles apart: of the manifest, which has the digests of all files."""
    return hashlib.sha256((session.bundle.path / "manifest.json").read_bytes()).hexdigest()[:12]
