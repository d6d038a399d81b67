"""The progress of a build, from the nested phases that TensorRT reports. Knows no TensorRT."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Phases"]


@dataclass
class _Phase:
    parent: str | None
    steps: int
    begin: float  # of the whole work, 0..1
    width: float
    done: int = 0


class Phases:
    """Progress from nested phases: a phase is part of its parent's step at its start. The share never decreases."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self.share = 0.0  # completed share of the work, 0..1

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Start a phase."""
        outer = self._open.get(parent or "")
        begin, width = 0.0, 1.0
        if outer is not None:
            width = outer.width / max(outer.steps, 1)
            begin = outer.begin + width * min(outer.done, max(outer.steps - 1, 0))
        self._open[name] = _Phase(parent, steps, begin, width)

    def step(self, name: str, step: int) -> None:
        """Complete one step of a phase; steps count from 0."""
        phase = self._open.get(name)
        if phase is not None:
            phase.done = step + 1
            self._reach(phase.begin + phase.width * min(phase.done / max(phase.steps, 1), 1.0))

    def finish(self, name: str) -> None:
        """End a phase."""
        phase = self._open.pop(name, None)
        if phase is not None:
            self._reach(phase.begin + phase.width)

    def _reach(self, share: float) -> None:
        self.share = max(self.share, min(share, 1.0))
