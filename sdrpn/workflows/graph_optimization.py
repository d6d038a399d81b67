"""Save a bundle's graphs as ONNX Runtime optimises them for this machine's CPU, in the bundle."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, FileInfo, Variant, file_digest, open_bundle
from sdrpn.bundle.graphs import graph_named
from sdrpn.bundle.memory import cpu_needs
from sdrpn.bundle.optimized import OPTIMIZED_NAME, OptimizedManifest, optimized_folder, source_digest
from sdrpn.bundle.shipped import bundle_path, require_not_shipped
from sdrpn.errors import BadInput
from sdrpn.host.atomic import replacing_directory, require_free_space
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.machine import read_cpu
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.sizes import text_from_bytes
from sdrpn.runtime.backends import onnxruntime_version
from sdrpn.runtime.select import graph_variant

__all__ = ["ATTENTIONS", "OptimizeRequest", "OptimizedGraphs", "optimize", "optimize_bundle"]

GROUP_QUERY, STANDARD = ATTENTIONS = ("group-query", "standard")


@dataclass(frozen=True)
class OptimizeRequest(CheckedFields):
    """Which variant to optimise, and with which attention."""

    bundle: Path | str
    variant: str | None = None  # None: the one that suits a CPU best
    # One of ATTENTIONS: ONNX Runtime's own operator, or the attention as exported. None: the operator where it can
    # replace the exported attention.
    attention: str | None = None
    threads: int | None = None  # of the CPU; None: one per free core, and a single one for a small model

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in (None, *ATTENTIONS):
            raise BadInput(f"attention is {self.attention!r}; expected {' or '.join(ATTENTIONS)}")
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"threads is {self.threads}; expected a whole number of at least 1")


@dataclass(frozen=True)
class OptimizedGraphs:
    """The saved graphs, their folder, and how long saving took."""

    folder: Path
    manifest: OptimizedManifest
    seconds: float

    @property
    def size_bytes(self) -> int:
        """Size of all files that were written."""
        return sum(info.size_bytes for info in self.manifest.files.values())

    @property
    def text(self) -> str:
        """What was saved, and its size, in one line."""
        manifest = self.manifest
        size, mapped = text_from_bytes(self.size_bytes), text_from_bytes(manifest.mapped_bytes)
        return (
            f"{self.folder}: {manifest.variant} for ONNX Runtime {manifest.onnxruntime} on {manifest.cpu}, "
            f"{size} on disk, {mapped} of it mapped in use"
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest's entries, and folder, seconds and size_bytes."""
        entries = dataclasses.asdict(self.manifest)
        return {**entries, "folder": self.folder, "seconds": self.seconds, "size_bytes": self.size_bytes}


def optimize_bundle(
    bundle: Path | str,
    *,
    variant: str | None = None,
    attention: str | None = None,
    threads: int | None = None,
    progress: Advance = unseen,
) -> OptimizedGraphs:
    """Let ONNX Runtime optimise a variant's graphs for this CPU; sessions take the result from then on.

    The result fits one release of ONNX Runtime on one processor model. Elsewhere, and after another export, the
    bundle's own graphs are used.

    Args:
        bundle: folder of a bundle
        variant: None: the one that suits a CPU best
        attention: "group-query", ONNX Runtime's own operator, or "standard", as exported; None: the operator where it
            can replace the exported attention
        threads: of the CPU; None: one per free core, and a single one for a small model
        progress: called with the number of graphs saved so far, and of all

    Raises:
        BadInput: the shipped bundle, a release, an unknown variant, or attention that cannot be replaced
        BadBundle: the variant's files differ from the manifest
        MissingDependency: the extra `export` is not installed
        RunFailed: the saved graphs compute something else; nothing is kept
    """
    return optimize(OptimizeRequest(bundle, variant, attention, threads), progress)


def optimize(request: OptimizeRequest, progress: Advance = unseen) -> OptimizedGraphs:
    """See `optimize_bundle`."""
    path = bundle_path(request.bundle)
    require_not_shipped(path, f"optimise a copy of it: cp -r {path} bundle && sdrpn optimize bundle")
    bundle = open_bundle(path)
    bundle.require_graphs("to optimise them for this machine's CPU")
    variant = graph_variant(bundle, request.variant)
    attention = _attention(variant, request.attention)
    with importing_extra("export", "sdrpn optimize"):
        import sdrpn.export  # noqa: F401
    folder = optimized_folder(bundle, variant, onnxruntime_version(), read_cpu())
    bundle.verify(variant.files)
    start_s = time.perf_counter()
    # As they are and in the layout of kernels: about twice what they take in memory.
    require_free_space(folder, 2 * cpu_needs(bundle, variant, context=1).weights_bytes)
    with replacing_directory(folder, exist_ok=True) as work:
        graphs = _save_all(bundle, variant, work, attention, request.threads, progress)
        manifest = _manifest(bundle, variant, work, attention, graphs)
        (work / OPTIMIZED_NAME).write_text(manifest.to_text(), encoding="utf-8")
    return OptimizedGraphs(folder, manifest, round(time.perf_counter() - start_s, 1))


def _attention(variant: Variant, asked: str | None) -> str:
    """The attention of a variant's saved graphs. Raises BadInput if the operator was requested and cannot be used."""
    obstacle = _obstacle(variant)
    if asked == GROUP_QUERY and obstacle is not None:
        raise BadInput(f"{variant.name} {obstacle}; leave it as it is", options=("attention standard",))
    return asked or (GROUP_QUERY if obstacle is None else STANDARD)


def _obstacle(variant: Variant) -> str | None:
    """Why ONNX Runtime's operator cannot replace the exported attention; None: it can."""
    if variant.dialect != "fused":
        return "has no attention operators to replace"
    if variant.computes_in_half:
        return "computes in fp16 and is cut for engines"
    if variant.kv_cache is not None:
        return "has a scale for every row of its caches, and ONNX Runtime's operator takes one for all"
    return None


def _save_all(
    bundle: Bundle, variant: Variant, work: Path, attention: str, threads: int | None, progress: Advance
) -> dict[str, str]:
    """Save all graphs: graph -> its file."""
    from sdrpn.export.ort_variant import group_query_graph
    from sdrpn.export.ort_vision import multi_head_graph
    from sdrpn.runtime.optimize import save_graph

    saved: dict[str, str] = {}
    for name, graph in variant.graphs.items():
        path = bundle.file(graph.file)
        rewritten: bytes | None = None
        if attention == GROUP_QUERY and graph_named(name).attentions(bundle.spec):  # a probe has none
            rewritten = group_query_graph(path) if graph_named(name).has_caches else multi_head_graph(path)
        save_graph(graph, rewritten or path, bundle.path, work / f"{name}.onnx", threads)
        saved[name] = f"{name}.onnx"
        progress(len(saved), len(variant.graphs))
    return saved


def _manifest(
    bundle: Bundle, variant: Variant, work: Path, attention: str, graphs: dict[str, str]
) -> OptimizedManifest:
    from sdrpn.export.ort_variant import mapped_bytes

    cpu = read_cpu()
    names = sorted(path.name for path in work.iterdir())
    return OptimizedManifest(
        variant=variant.name,
        onnxruntime=onnxruntime_version(),
        cpu=cpu.model,
        cpu_sha256=cpu.digest,
        attention=attention,
        source_sha256=source_digest(bundle, variant),
        graphs=graphs,
        files={name: FileInfo((work / name).stat().st_size, file_digest(work / name)) for name in names},
        mapped_bytes=sum(mapped_bytes(work / file) for file in graphs.values()),
    )
