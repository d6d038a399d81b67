"""Save a bundle's graphs for this machine's CPU, in the form of a library that runs them, in the bundle."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, FileInfo, GraphInfo, Variant, file_digest, open_bundle
from sdrpn.bundle.graphs import graph_named
from sdrpn.bundle.memory import cpu_needs
from sdrpn.bundle.optimized import OPTIMIZED_NAME, OptimizedManifest, optimized_folder, source_digest, stale_folders
from sdrpn.bundle.shipped import bundle_path, require_not_shipped
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.atomic import replacing_directory, require_free_space
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.file_lock import locked_folder
from sdrpn.host.libraries import importing_extra
from sdrpn.host.links import real_file
from sdrpn.host.machine import read_cpu
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.sizes import text_from_bytes
from sdrpn.runtime.backends import onnxruntime_version
from sdrpn.runtime.backends.openvino_info import openvino_version
from sdrpn.runtime.backends.registry import BACKENDS
from sdrpn.runtime.select import graph_variant
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.reblocking import Reblocked, reblocked

__all__ = [
    "ATTENTIONS",
    "INT8_PARTS",
    "LIBRARIES",
    "OptimizeRequest",
    "OptimizedGraphs",
    "optimize",
    "optimize_bundle",
    "save_graphs",
]

# Parts that exports keep in floats -> their graphs, and the weights that are meant; None: all matrices.
INT8_PARTS: dict[str, tuple[tuple[str, ...], frozenset[str] | None]] = {
    "lm_head": (("tail",), frozenset({"llm.head.weight"})),
    "rpn": (("rpn", "gate"), None),
    "vision": (("vision",), None),
}
# As much as 8 bits may change the results of a graph, as a share of their spread.
_MOST_CHANGED = 0.05

ONNXRUNTIME, OPENVINO_NAME = LIBRARIES = ("onnxruntime", "openvino")
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
    int8: tuple[str, ...] = ()  # some of INT8_PARTS: in 8 bits what is in floats, where that changes little
    library: str = ONNXRUNTIME  # one of LIBRARIES
    # Blocks of 4-bit matrices, made again from the checkpoint where that adds little to their error; None: as exported.
    block: int | None = None
    checkpoint: Path | None = None  # what the bundle was exported from
    rpn: Path | None = None  # and its RPN, if that is in a file of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in (None, *ATTENTIONS):
            raise BadInput(f"attention is {self.attention!r}; expected {' or '.join(ATTENTIONS)}")
        if self.library not in LIBRARIES:
            raise BadInput(f"library is {self.library!r}; expected {' or '.join(LIBRARIES)}")
        if self.library == OPENVINO_NAME and self.attention is not None:
            raise BadInput("attention is for ONNX Runtime: OpenVINO has one form", options=("attention",))
        strange = [part for part in self.int8 if part not in INT8_PARTS]
        if strange:
            raise BadInput(
                f"there is no part {', '.join(strange)} to put in 8 bits; expected some of {', '.join(INT8_PARTS)}"
            )
        if (self.block is None) != (self.checkpoint is None) or (self.rpn is not None and self.checkpoint is None):
            raise BadInput(
                "blocks are made again from the checkpoint: name both or none, and the RPN only with them",
                options=("block", "checkpoint"),
            )
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"threads is {self.threads}; expected a whole number of at least 1")


@dataclass(frozen=True)
class OptimizedGraphs:
    """The saved graphs, their folder, and how long saving took."""

    folder: Path
    manifest: OptimizedManifest
    seconds: float
    left: Mapping[str, float] = field(default_factory=dict)  # parts that stay in floats, and what 8 bits would change
    blocks: Reblocked | None = None
    removed: tuple[Path, ...] = ()  # folders of saved graphs that this machine does not take any more, or none does

    @property
    def size_bytes(self) -> int:
        """Size of all files that were written."""
        return sum(info.size_bytes for info in self.manifest.files.values())

    @property
    def text(self) -> str:
        """What was saved, and its size, in one line."""
        manifest = self.manifest
        library = BACKENDS[manifest.library].library
        size, mapped = text_from_bytes(self.size_bytes), text_from_bytes(manifest.mapped_bytes)
        return (
            f"{self.folder}: {manifest.variant} for {library} {manifest.version} on {manifest.cpu}, "
            f"{size} on disk, {mapped} of it mapped in use"
        )

    @property
    def lines(self) -> list[str]:
        """The text, and what became of the parts that were to be in 8 bits."""
        changed = [f"{part} in 8 bits, which changes its results by {share:.1%}" for part, share in self._changes]
        left = [f"{part} stays in floats: 8 bits would change its results by {x:.1%}" for part, x in self.left.items()]
        removed = [f"{folder}: removed, since it was stale" for folder in self.removed]
        return [self.text, *changed, *left, *([] if self.blocks is None else [self.blocks.text]), *removed]

    @property
    def _changes(self) -> list[tuple[str, float]]:
        return sorted(self.manifest.int8.items())

    def to_json(self) -> dict[str, Any]:
        """The manifest's entries, and folder, seconds and size_bytes."""
        entries = dataclasses.asdict(self.manifest)
        return {
            **entries,
            "folder": self.folder,
            "seconds": self.seconds,
            "size_bytes": self.size_bytes,
            "left": self.left,
            "blocks": self.blocks,
            "removed": self.removed,
        }


def optimize_bundle(
    bundle: Path | str,
    *,
    variant: str | None = None,
    attention: str | None = None,
    threads: int | None = None,
    int8: tuple[str, ...] = (),
    library: str = ONNXRUNTIME,
    block: int | None = None,
    checkpoint: Path | None = None,
    rpn: Path | None = None,
    progress: Advance = unseen,
) -> OptimizedGraphs:
    """Let a library optimise a variant's graphs for this CPU; sessions take the result from then on.

    The result fits one release of the library on one processor model. Elsewhere, and after another export, the
    bundle's own graphs are used. What was saved for another release of the library on this processor is removed, and
    so is what was made from an export that is gone.

    Args:
        bundle: folder of a bundle
        variant: None: the one that suits a CPU best
        attention: "group-query", ONNX Runtime's own operator, or "standard", as exported; None: the operator where it
            can replace the exported attention
        threads: of the CPU; None: one per free core, and a single one for a small model
        int8: of "lm_head", "rpn" and "vision", what is put in 8 bits although the bundle has it in floats, unless that
            changes the results of its graph by more than 5 % of their spread
        library: "onnxruntime", or "openvino": in its own form, with weights that are mapped and not converted again
        block: how many inputs of a 4-bit matrix share a scale, made again from the checkpoint, unless that adds more
            than 40 % to the error of the matrices; None: as exported
        checkpoint, rpn: what the bundle was exported from, for `block`
        progress: called with the number of graphs saved so far, and of all

    Raises:
        BadInput: the shipped bundle, a release, an unknown variant, attention that cannot be replaced, or another
            checkpoint than the bundle's
        BadBundle: the variant's files differ from the manifest
        MissingDependency: the extra `export` is not installed
        RunFailed: the saved graphs compute something else; nothing is kept
    """
    return optimize(
        OptimizeRequest(bundle, variant, attention, threads, int8, library, block, checkpoint, rpn), progress
    )


def optimize(request: OptimizeRequest, progress: Advance = unseen) -> OptimizedGraphs:
    """See `optimize_bundle`."""
    path = bundle_path(request.bundle)
    require_not_shipped(path, f"optimise a copy of it: cp -r {path} bundle && sdrpn optimize bundle")
    bundle = open_bundle(path)
    with locked_folder(bundle.path):
        saved = save_graphs(bundle, request, progress)
        stale = stale_folders(bundle, saved.folder)
        for folder in stale:
            shutil.rmtree(folder, ignore_errors=True)  # on some systems not while a process has mapped it
    return dataclasses.replace(saved, removed=tuple(folder for folder in stale if not folder.exists()))


def save_graphs(bundle: Bundle, request: OptimizeRequest, progress: Advance = unseen) -> OptimizedGraphs:
    """As `optimize`, for an open bundle whose folder the caller has locked; removes nothing but what it replaces."""
    bundle.require_graphs("to optimise them for this machine's CPU")
    info = BACKENDS[request.library]
    version = onnxruntime_version() if info.name == ONNXRUNTIME else openvino_version()
    variant = graph_variant(bundle, request.variant, info=info)
    attention = _attention(variant, request.attention) if info.name == ONNXRUNTIME else STANDARD
    with importing_extra("export", "sdrpn optimize"):
        import sdrpn.export  # noqa: F401
    folder = optimized_folder(bundle, variant, version, read_cpu(), info.name)
    real_file(folder, bundle.roots, BadBundle)  # a link would be followed, and what it leads to be replaced
    bundle.verify(variant.files)
    start_s = time.perf_counter()
    # As they are and in the layout of kernels: about twice what they take in memory.
    require_free_space(folder, 2 * cpu_needs(bundle, variant, context=1).weights_bytes)
    with ExitStack() as reblocking:
        blocks, source, graphs = None, bundle, variant
        if request.block is not None and request.checkpoint is not None:
            parts = CheckpointParts(request.checkpoint, rpn=request.rpn)
            blocks, source = reblocking.enter_context(reblocked(bundle, variant, parts, request.block))
            graphs = source.variant(variant.name)
        with replacing_directory(folder, exist_ok=True) as work:
            made = _save_all(source, graphs, work, attention, request, progress)
            manifest = _manifest(bundle, variant, work, attention, made, version)
            if blocks is not None and blocks.done:
                manifest = dataclasses.replace(manifest, block=blocks.block)
            (work / OPTIMIZED_NAME).write_text(manifest.to_text(), encoding="utf-8")
    return OptimizedGraphs(folder, manifest, round(time.perf_counter() - start_s, 1), made.left, blocks)


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


@dataclass
class _Saved:
    """What was saved so far."""

    library: str
    files: dict[str, str] = field(default_factory=dict)  # by graph
    read_bytes: dict[str, int] = field(default_factory=dict)  # by graph
    int8: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)


def _save_all(
    bundle: Bundle, variant: Variant, work: Path, attention: str, request: OptimizeRequest, progress: Advance
) -> _Saved:
    saved = _Saved(request.library)
    for name, graph in variant.graphs.items():
        path = bundle.file(graph.file)
        own = attention if _has_replaceable(bundle, name) else STANDARD
        rewritten = _in_eight_bits(bundle, graph, own, request, saved)
        if rewritten is None and own == GROUP_QUERY:
            rewritten = _rewritten(path, graph, own)
        saved.files[name], saved.read_bytes[name] = _save(graph, rewritten or path, bundle, work, request)
        progress(len(saved.files), len(variant.graphs))
    return saved


def _has_replaceable(bundle: Bundle, graph: str) -> bool:
    """Whether a graph has attention that ONNX Runtime's operator can replace: not a gate's last layer, whose only query
    is projected by itself, and nothing of a probe."""
    return graph_named(graph).attentions(bundle.spec) > (1 if graph == "gate" else 0)


def _save(
    graph: GraphInfo, model: bytes | Path, bundle: Bundle, work: Path, request: OptimizeRequest
) -> tuple[str, int]:
    """Save one graph in the form of the library; the name of its file, and the bytes of weights that it reads."""
    if request.library == ONNXRUNTIME:
        from sdrpn.export.ort_variant import mapped_bytes
        from sdrpn.runtime.optimize import save_graph

        out = work / f"{graph.name}.onnx"
        save_graph(graph, model, bundle.path, out, request.threads)
        return out.name, mapped_bytes(out)
    from sdrpn.runtime.optimize_openvino import save_openvino_graph

    content, out = model.read_bytes() if isinstance(model, Path) else model, work / f"{graph.name}.xml"
    return out.name, save_openvino_graph(graph, content, bundle.file(graph.file), out, request.threads)


def _rewritten(path: Path, graph: GraphInfo, attention: str, weights: frozenset[str] | None = frozenset()) -> bytes:
    """A graph with ONNX Runtime's own attention if that is asked for, and some weights in 8 bits; None: all of them."""
    import onnx_ir

    from sdrpn.export.eight_bits import use_eight_bits
    from sdrpn.export.ort_variant import use_group_query
    from sdrpn.export.ort_vision import split_products, use_multi_head

    model, tower = onnx_ir.load(path), False
    if attention == GROUP_QUERY and graph_named(graph.name).has_caches:
        use_group_query(model, str(path))
    elif attention == GROUP_QUERY:
        tower = use_multi_head(model)
    if weights is None or weights:
        use_eight_bits(model, weights)
    if tower:
        split_products(model)  # of what is left: a matrix in 8 bits stays whole
    return bytes(onnx_ir.to_proto(model).SerializeToString())


def _in_eight_bits(
    bundle: Bundle, graph: GraphInfo, attention: str, request: OptimizeRequest, saved: _Saved
) -> bytes | None:
    """The graph with the parts in 8 bits that were asked for; None where it has none, or they would change too much."""
    from sdrpn.runtime.optimize import values_changed

    for part in request.int8:
        graphs, weights = INT8_PARTS[part]
        if graph.name not in graphs:
            continue
        path = bundle.file(graph.file)
        content = _rewritten(path, graph, attention, weights)
        changed = values_changed(graph, path, content, bundle.path, request.threads)
        of = saved.int8 if changed <= _MOST_CHANGED else saved.left
        of[part if weights else graph.name] = changed
        return content if changed <= _MOST_CHANGED else None
    return None


def _manifest(
    bundle: Bundle, variant: Variant, work: Path, attention: str, saved: _Saved, version: str
) -> OptimizedManifest:
    cpu = read_cpu()
    names = sorted(path.name for path in work.iterdir())
    return OptimizedManifest(
        variant=variant.name,
        version=version,
        cpu=cpu.model,
        cpu_sha256=cpu.digest,
        attention=attention,
        source_sha256=source_digest(bundle, variant),
        graphs=saved.files,
        files={name: FileInfo((work / name).stat().st_size, file_digest(work / name)) for name in names},
        mapped_bytes=sum(
            saved.read_bytes[graph] if saved.library == ONNXRUNTIME else (work / f"{graph}.bin").stat().st_size
            for graph in saved.files
        ),
        int8=saved.int8,
        library=saved.library,
        read_bytes=saved.read_bytes,
    )
