"""All engines of a bundle as one page, Markdown or HTML: sizes, seconds, memory, gates. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class PageEngine:
    """One engine, or why its manifest cannot be believed."""

    target: str
    graph: str
    manifest: EngineManifest | None
    fault: str | None = None


def page_text(path: Path, title: str, engines: Sequence[PageEngine]) -> str:
    """The page in the format that the name of the file asks for. Raises BadInput for any other."""
    if path.suffix not in PAGES:
        raise BadInput(f"{path} is no name for a report; expected one that ends in {' or '.join(PAGES)}")
    rows = [_cells(engine) for engine in engines]
    return _markdown(title, rows) if path.suffix == ".md" else _html(title, rows)


def _cells(engine: PageEngine) -> tuple[str, ...]:
    manifest = engine.manifest
    if manifest is None:
        return (engine.target, engine.graph, *("",) * (len(_COLUMNS) - 3), engine.fault or "no manifest")
    return (
        engine.target,
        engine.graph,
        manifest.variant,
        " ".join(manifest.compute_capabilities),
        f"{manifest.flavour} {manifest.library_version}",
        text_from_bytes(manifest.engine.size_bytes),
        f"{manifest.build_s:.1f} s",
        text_from_bytes(manifest.peak_rss_bytes),
        _kernels(manifest),
        _parity(manifest.parity),
        manifest.engine.sha256,
    )


def _kernels(manifest: EngineManifest) -> str:
    if not manifest.kernel_gate:
        return f"{manifest.kernels}, passed"
    found = "; ".join(manifest.kernel_gate)
    return f"{manifest.kernels}, {found}" if manifest.passed_kernel_gate else f"{_FAILED}: {found}"


def _parity(gates: Sequence[ParityGate]) -> str:
    if not gates:
        return "not verified"
    failed = [gate for gate in gates if not gate.ok]
    if not failed:
        return f"{len(gates)} of {len(gates)} gates passed"
    return f"{_FAILED}: {', '.join(f'{gate.graph} {gate.kind}' for gate in failed)}"


def _markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = [("---:" if column in _RIGHT else "---") for column in _COLUMNS]
    return "\n".join([f"# {title}", "", line(_COLUMNS), line(rule), *map(line, rows)]) + "\n"


def _html(title: str, rows: Sequence[Sequence[str]]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        title=title,
        columns=_COLUMNS,
        rows=rows,
        right=[column in _RIGHT for column in _COLUMNS],
        failed=[any(cell.startswith(_FAILED) for cell in cells) for cells in rows],
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #8884; }
.n { text-align: right; white-space: nowrap; } .failed { background: #e4575640; }
td:last-child { font: 12px monospace; word-break: break-all; }
</style>
<h1>{{ title }}</h1>
<table><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for cells in rows %}
<tr{% if failed[loop.index0] %} class="failed"{% endif %}>
{%- for cell in cells %}<td{% if right[loop.index0] %} class="n"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</html>
"""
