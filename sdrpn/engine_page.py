"""All engines of a bundle as one page, Markdown or HTML: sizes, seconds, memory, gates. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdrpn.engine_manifest import EngineManifest, ParityGate
from sdrpn.errors import BadInput
from sdrpn.sizes import text_from_bytes

__all__ = ["PAGES", "PageEngine", "page_text"]

PAGES = (".md", ".html")
_COLUMNS = (
    "target",
    "graph",
    "variant",
    "for",
    "library",
    "size",
    "built in",
    "peak RSS",
    "kernels",
    "parity",
    "sha256",
)
_FAILED = "FAILED"
_RIGHT = ("size", "built in", "peak RSS")  # numbers
_CLASSES = {**dict.fromkeys(_RIGHT, "number"), "sha256": "digest"}
_GATES = ("variant", "graph", "measure", "gate", "worst", "where")


@dataclass(frozen=True)
class PageEngine:
    """One engine. `fault`: why it is broken on every machine."""

    target: str
    graph: str
    manifest: EngineManifest | None
    fault: str | None = None


def page_text(path: Path, title: str, engines: Sequence[PageEngine]) -> str:
    """The page in the format that the name of the file asks for. Raises BadInput for any other."""
    if path.suffix not in PAGES:
        raise BadInput(f"{path} is no name for a report; expected one that ends in {' or '.join(PAGES)}")
    tables = [_Table("", _COLUMNS, [_cells(engine) for engine in engines])]
    gates = list(dict.fromkeys(row for engine in engines for row in _gates(engine)))  # alike for every target
    if gates:
        tables.append(_Table("Gates", _GATES, gates))
    return _markdown(title, tables) if path.suffix == ".md" else _html(title, tables)


@dataclass(frozen=True)
class _Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def failed(self) -> list[bool]:
        """Of every row."""
        return [any(cell.startswith(_FAILED) for cell in cells) for cells in self.rows]


def _cells(engine: PageEngine) -> tuple[str, ...]:
    manifest = engine.manifest
    if manifest is None:
        fault = f"{_FAILED}: {engine.fault or 'no manifest'}"
        return (engine.target, engine.graph, *("",) * (len(_COLUMNS) - 4), fault, "")
    return (
        engine.target,
        engine.graph,
        manifest.variant if manifest.fallback is None else f"{manifest.variant} instead of {manifest.fallback.variant}",
        " ".join(manifest.compute_capabilities),
        f"{manifest.flavour} {manifest.library_version}",
        text_from_bytes(manifest.engine.size_bytes),
        f"{manifest.build_s:.1f} s",
        text_from_bytes(manifest.peak_rss_bytes),
        _kernels(manifest),
        f"{_FAILED}: {engine.fault}" if engine.fault else _parity(manifest.parity),
        manifest.engine.sha256,
    )


def _kernels(manifest: EngineManifest) -> str:
    if not manifest.kernel_gate:
        return f"{manifest.kernels}, passed"
    found = "; ".join(manifest.kernel_gate)
    return f"{_FAILED}: {found}" if manifest.kernel_verdict == "failed" else f"{manifest.kernels}, {found}"


def _parity(gates: Sequence[ParityGate]) -> str:
    if not gates:
        return "not verified"
    failed = [gate for gate in gates if not gate.ok]
    if not failed:
        return f"{len(gates)} of {len(gates)} gates passed"
    return f"{_FAILED}: {', '.join(f'{gate.graph} {gate.kind}' for gate in failed)}"


def _gates(engine: PageEngine) -> Iterator[tuple[str, ...]]:
    """The worst of each measure, which `sdrpn verify` wrote into the manifest."""
    manifest = engine.manifest
    for gate in manifest.parity if manifest is not None else ():
        verdict = "passed" if gate.ok else _FAILED
        variant = manifest.variant if manifest is not None else ""
        yield (variant, gate.graph, gate.kind, verdict, gate.text, gate.tensor)


def _markdown(title: str, tables: Sequence[_Table]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [f"# {title}"]
    for table in tables:
        rule = [("---:" if column in _RIGHT else "---") for column in table.columns]
        lines += [*(["", f"## {table.title}"] if table.title else []), ""]
        lines += [line(table.columns), line(rule), *map(line, table.rows)]
    return "\n".join(lines) + "\n"


def _html(title: str, tables: Sequence[_Table]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(title=title, tables=tables, classes=_CLASSES)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #8884; }
.number { text-align: right; white-space: nowrap; } .failed { background: #e4575640; }
.digest { font: 12px monospace; word-break: break-all; }
</style>
<h1>{{ title }}</h1>
{% for table in tables %}
{% if table.title %}
<h2>{{ table.title }}</h2>
{% endif %}
<table><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for cells in table.rows %}
<tr{% if table.failed[loop.index0] %} class="failed"{% endif %}>
{%- for cell in cells %}{% set column = table.columns[loop.index0] %}
<td{% if column in classes %} class="{{ classes[column] }}"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
</html>
"""
