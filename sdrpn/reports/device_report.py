"""The results of all checks of a device, step by step: as JSON, as a page, and as one row of a table. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdrpn.reports.table_page import Table, page_text
from sdrpn.reports.text import Text

__all__ = ["CheckResult", "DeviceReport", "Figure", "State", "Subject"]

State = Literal["passed", "failed", "skipped"]
Figure = float | int | str

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckResult:
    """The result of one step. `detail`: the finding, the error in one line, or why the step was skipped."""

    group: str
    name: str
    state: State
    detail: str
    seconds: float
    figures: Mapping[str, Figure] = field(default_factory=dict)  # names carry the unit: first_token_ms

    @property
    def title(self) -> str:
        """Group and name of the step."""
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Subject:
    """The bundle that was checked, and the library that ran it."""

    bundle: str  # the folder's name, never a path on the user's machine
    variant: str
    backend: str
    target: str | None = None
    on: Literal["cpu", "gpu"] = "cpu"  # where that library answers


@dataclass(frozen=True)
class DeviceReport:
    """One run of all checks on one machine."""

    created: str  # UTC, ISO 8601
    version: str  # of sdrpn
    device: str  # the name of the GPU or, without one, of the processor
    machine: Mapping[str, Any]
    libraries: Mapping[str, str | None]
    subject: Subject | None
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return not self.of_state("failed")

    def of_state(self, state: State) -> tuple[CheckResult, ...]:
        """The steps with this state."""
        return tuple(result for result in self.results if result.state == state)

    @property
    def summary(self) -> str:
        """How many steps passed, failed and were skipped."""
        states: tuple[State, ...] = ("passed", "failed", "skipped")
        return ", ".join(f"{len(self.of_state(state))} {state}" for state in states)

    def figure(self, name: str) -> Figure | None:
        """A figure by its name, from the step that has it."""
        found = [result.figures[name] for result in self.results if name in result.figures]
        return found[0] if found else None

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object; entries are only added while `format_version` is 1."""
        return {"format_version": FORMAT_VERSION, "ok": self.ok, "summary": self.summary, **asdict(self)}

    def to_row(self) -> dict[str, Any]:
        """The row for a table of devices: one line of a results file."""
        ran = [result for result in self.results if result.state != "skipped" and result.group == "bundle"]
        return {
            "date": self.created[:10],
            "sdrpn": self.version,
            "device": self._answered_by,
            "libraries": {name: version for name, version in self.libraries.items() if version is not None},
            "subject": asdict(self.subject) if self.subject is not None and ran else None,
            "passed": len(self.of_state("passed")),
            "failed": len(self.of_state("failed")),
            "skipped": len(self.of_state("skipped")),
            "first_token_ms": self.figure("first_token_ms"),
            "token_ms": self.figure("token_ms"),
        }

    @property
    def _answered_by(self) -> str:
        on_cpu = self.subject is not None and self.subject.on == "cpu" and bool(self.machine["gpus"])
        return f"{self.device}, answers on {self.machine['cpu']}" if on_cpu else self.device

    def text(self) -> Text:
        """One row per step."""
        rows = [(result.title, result.state, f"{result.seconds:.1f}", result.detail) for result in self.results]
        return [Table(f"{self.device}: {self.summary}", ("Step", "State", "Seconds", "Found"), rows)]

    def page(self, path: Path) -> str:
        """The page in the format of the file's extension. Raises BadInput for extensions other than .md and .html."""
        facts = [("created", self.created), ("sdrpn", self.version), ("device", self.device)]
        facts += [(name, str(value)) for name, value in self.machine.items() if isinstance(value, (str, int))]
        facts += [(name, version or "not installed") for name, version in self.libraries.items()]
        if self.subject is not None:
            facts += [(name, str(value)) for name, value in asdict(self.subject).items() if value is not None]
        tables = (
            Table("Checks", ("step", "state", "seconds", "found"), _rows(self.results), right=("seconds",)),
            Table("Figures", ("step", "figure", "value"), _figure_rows(self.results), right=("value",)),
            Table("Machine", ("fact", "value"), facts),
        )
        return page_text(path, f"Device check: {self.device}: {self.summary}", tables)


def _rows(results: Sequence[CheckResult]) -> list[tuple[str, ...]]:
    return [
        (result.title, "FAILED" if result.state == "failed" else result.state, f"{result.seconds:.1f}", result.detail)
        for result in results
    ]


def _figure_rows(results: Sequence[CheckResult]) -> list[tuple[str, ...]]:
    return [(result.title, name, _number(value)) for result in results for name, value in result.figures.items()]


def _number(value: Figure) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
