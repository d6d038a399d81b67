"""All engines of a bundle as one page, Markdown or HTML: sizes, seconds, memory, gates. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sdrpn.bundle.engine_manifest import EngineManifest, ParityGate
from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.table_page import PAGES, Table
from sdrpn.reports.table_page import page_text as tables_page

__all__ = ["PAGES", "PageEngine", "page_text"]

_COLUMNS = (
    "target",
    "graph",
    "variant",
    "for",
    "library",
    "context",
    "batch",
    "size",
    "built on",
    "built in",
    "peak RSS",
    "kernels",
    "parity",
    "sha256",
)
_RIGHT = ("context", "batch", "size", "built in", "peak RSS")  # numbers
_GATES = ("variant", "graph", "measure", "gate", "worst", "where")
_FAILED = "FAILED"


@dataclass(frozen=True)
class PageEngine:
    """One engine. `fault`: why it is unusable on any machine."""

    target: str
    graph: str
    manifest: EngineManifest | None
    fault: str | None = None


def page_text(path: Path, title: str, engines: Sequence[PageEngine], not_built: Mapping[str, str] | None = None) -> str:
    """The page in the format of the file's extension. Raises BadInput for other extensions.

    Args:
        not_built: requested targets without engines, and why
    """
    tables = [Table("", _COLUMNS, [_cells(engine) for engine in engines], _RIGHT, ("sha256",))]
    if not_built:
        tables.append(Table("Not built", ("target", "why"), list(not_built.items())))
    gates = list(dict.fromkeys(row for engine in engines for row in _gates(engine)))  # the same for every target
    if gates:
        tables.append(Table("Gates", _GATES, gates))
    return tables_page(path, title, tables)


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
        ", ".join(f"{rows:,}" for rows in manifest.contexts or (manifest.max_context,)),
        str(manifest.max_batch),
        text_from_bytes(manifest.engine.size_bytes),
        _date(manifest.engine.modified_ns),
        f"{manifest.build_s:.1f} s",
        text_from_bytes(manifest.peak_rss_bytes),
        _kernels(manifest),
        f"{_FAILED}: {engine.fault}" if engine.fault else _parity(manifest),
        manifest.engine.sha256,
    )


def _date(modified_ns: int) -> str:
    return datetime.fromtimestamp(modified_ns / 1e9, timezone.utc).strftime("%Y-%m-%d")


def _kernels(manifest: EngineManifest) -> str:
    if not manifest.kernel_gate:
        return f"{manifest.kernels}, passed"
    found = "; ".join(manifest.kernel_gate)
    return f"{_FAILED}: {found}" if manifest.kernel_verdict == "failed" else f"{manifest.kernels}, {found}"


def _parity(manifest: EngineManifest) -> str:
    """The verdict of the gates. Most check the graph in ONNX Runtime, which says nothing about the engine's own run."""
    gates = manifest.parity
    if not gates:
        return "not verified; engine not run"
    failed = [gate for gate in gates if not gate.ok]
    if failed:
        return f"{_FAILED}: {', '.join(f'{gate.graph} {gate.kind}' for gate in failed)}"
    ran = [gate for gate in gates if gate.on_engine]
    if not ran:
        return f"graph parity, {len(gates)} of {len(gates)} gates; engine not run"
    graph = f"graph parity, {len(gates) - len(ran)} gates; " if len(ran) < len(gates) else ""
    return f"{graph}engine run on a GPU, {len(ran)} of {len(ran)} gates"


def _gates(engine: PageEngine) -> Iterator[tuple[str, ...]]:
    """The worst value of each measure, from the gates that `sdrpn verify` wrote into the manifest."""
    manifest = engine.manifest
    for gate in manifest.parity if manifest is not None else ():
        yield (manifest.variant if manifest is not None else "", gate.graph, _measure(gate), *_verdict(gate))


def _measure(gate: ParityGate) -> str:
    return f"{gate.kind}, engine on a GPU" if gate.on_engine else f"{gate.kind}, graph"


def _verdict(gate: ParityGate) -> tuple[str, str, str]:
    return "passed" if gate.ok else _FAILED, gate.text, gate.tensor
