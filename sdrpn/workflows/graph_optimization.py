"""Save a bundle's graphs for this machine's CPU, in the form of a library that runs them, in the bundle."""

from __future__ import annotations

import dataclasses
import time
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
from sdrpn.host.partial import remove_partial
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.sizes import text_from_bytes
from sdrpn.runtime.backends import onnxruntime_version
from sdrpn.runtime.backends.openvino_info import openvino_version
from sdrpn.runtime.backends.registry import BACKENDS
from sdrpn.runtime.select import graph_variant
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.part_codes import GROUP_QUERY, INT4_PARTS, INT8_PARTS, STANDARD, PartCodes, rewritten
from sdrpn.workflows.reblocking import Reblocked, reblocked, same_checkpoint

__all__ = [
    "ATTENTIONS",
    "LIBRARIES",
    "OptimizeRequest",
    "OptimizedGraphs",
    "optimize",
    "optimize_bundle",
    "save_graphs",
]

ONNXRUNTIME, OPENVINO_NAME = LIBRARIES = ("onnxruntime", "openvino")
ATTENTIONS = (GROUP_QUERY, STANDARD)


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
    int4: tuple[str, ...] = ()  # some of INT4_PARTS: in 4 bits what is in floats or in 8 bits, likewise
    library: str = ONNXRUNTIME  # one of LIBRARIES
    # Blocks of 4-bit matrices, made again from the checkpoint where that adds little to their error; None: as exported.
    block: int | None = None
    checkpoint: Path | None = None  # what the bundle was exported from
    rpn: Path | None = None  # and its RPN, if that is in a file of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in (None, *ATTENTIONS):
            raise BadInput(
                f"attention is {self.attention!r}; expected {' or '.join(ATTENTIONS)}", options=("attention",)
            )
        if self.library not in LIBRARIES:
            raise BadInput(f"library is {self.library!r}; expected {' or '.join(LIBRARIES)}", options=("for",))
        if self.library == OPENVINO_NAME and self.attention is not None:
            raise BadInput("attention is for ONNX Runtime: OpenVINO has one form", options=("attention",))
        for bits, asked, known in ((8, self.int8, tuple(INT8_PARTS)), (4, self.int4, INT4_PARTS)):
            strange = [part for part in asked if part not in known]
            if strange:
                raise BadInput(
                    f"there is no part {', '.join(strange)} to put in {bits} bits; expected some of {', '.join(known)}"
                )
        both = [part for part in self.int4 if part in self.int8]
        if both:
            raise BadInput(f"{both[0]} is to be in 8 bits and in 4; list it once", options=("int8", "int4"))
        self._check_checkpoint()
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"threads is {self.threads}; expected a whole number of at least 1", options=("threads",))

    def _check_checkpoint(self) -> None:
        if self.block is not None and self.checkpoint is None:
            raise BadInput(
                "blocks are made again from the checkpoint: name both or none, and the RPN only with them",
                options=("block", "checkpoint"),
            )
        if self.checkpoint is not None and self.block is None and not self.int4:
            raise BadInput(
                "a checkpoint is for blocks that are made again, or for a head in 4 bits; ask for one of them",
                options=("block", "int4"),
            )
        if self.rpn is not None and self.checkpoint is None:
            raise BadInput("an RPN is part of the checkpoint that it belongs to; name both", options=("checkpoint",))


@dataclass(frozen=True)
class OptimizedGraphs:
    """The saved graphs, their folder, and how long saving took."""

    folder: Path
    manifest: OptimizedManifest
    seconds: float
    parts: PartCodes = field(default_factory=lambda: PartCodes({}))
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
        """The text, and what became of the parts that were to have fewer bits, of blocks and of stale folders."""
        removed = [f"{folder}: removed, since it was stale" for folder in self.removed]
        return [self.text, *self.parts.lines, *([] if self.blocks is None else [self.blocks.text]), *removed]

    def to_json(self) -> dict[str, Any]:
        """The manifest's entries, and folder, seconds, size_bytes, parts that stay, blocks, and what was removed."""
        entries = dataclasses.asdict(self.manifest)
        return {
            **entries,
            "folder": self.folder,
            "seconds": self.seconds,
            "size_bytes": self.size_bytes,
            "left": self.parts.left[8],
            "left_int4": self.parts.left[4],
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
    int4: tuple[str, ...] = (),
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
        int4: of "lm_head", what is put in 4 bits, made from the checkpoint where that is named, else from what the
            bundle has, unless that changes the results by more than 25 %
        library: "onnxruntime", or "openvino": in its own form, with weights that are mapped and not converted again
        block: how many inputs of a 4-bit matrix share a scale, made again from the checkpoint, unless that adds more
            than 40 % to the error of the matrices; None: as exported
        checkpoint, rpn: what the bundle was exported from, for `block` and `int4`
        progress: called with the number of graphs saved so far, and of all

    Raises:
        BadInput: the shipped bundle, a release, an unknown variant, attention that cannot be replaced, or another
            checkpoint than the bundle's
        BadBundle: the variant's files differ from the manifest
        MissingDependency: the extra `export` is not installed
        RunFailed: the saved graphs compute something else; nothing is kept
    """
    return optimize(
        OptimizeRequest(bundle, variant, attention, threads, int8, int4, library, block, checkpoint, rpn), progress
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
            remove_partial(folder)  # on some systems not while a process has mapped it
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
    with ExitStack() as resources:
        blocks, source, graphs, parts = None, bundle, variant, _parts(request, variant)
        if request.checkpoint is not None:
            checkpoint = CheckpointParts(request.checkpoint, rpn=request.rpn)
            if request.block is not None:
                blocks, source = resources.enter_context(reblocked(bundle, variant, checkpoint, request.block))
                graphs = source.variant(variant.name)
            opened = resources.enter_context(same_checkpoint(bundle, checkpoint))
            parts.head = lambda: opened.read("llm.head.weight")
        with replacing_directory(folder, exist_ok=True) as work:
            made = _save_all(source, graphs, work, attention, request, parts, progress)
            manifest = _manifest(bundle, variant, work, attention, made, parts, version)
            if blocks is not None and blocks.done:
                manifest = dataclasses.replace(manifest, block=blocks.block)
            (work / OPTIMIZED_NAME).write_text(manifest.to_text(), encoding="utf-8")
    return OptimizedGraphs(folder, manifest, round(time.perf_counter() - start_s, 1), parts, blocks)


def _parts(request: OptimizeRequest, variant: Variant) -> PartCodes:
    """What gets fewer bits; a head in 4 in blocks as the other matrices in 4 bits."""
    how = variant.quantization or {}
    block = request.block or (how["block"] if how.get("bits") == 4 else PartCodes.block)
    bits = dict.fromkeys(request.int8, 8) | dict.fromkeys(request.int4, 4)
    return PartCodes(bits, block, threads=request.threads)


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


def _save_all(
    bundle: Bundle,
    variant: Variant,
    work: Path,
    attention: str,
    request: OptimizeRequest,
    parts: PartCodes,
    progress: Advance,
) -> _Saved:
    saved = _Saved(request.library)
    for name, graph in variant.graphs.items():
        path = bundle.file(graph.file)
        own = attention if _has_replaceable(bundle, name) else STANDARD
        content = parts.apply(bundle, graph, own)
        if content is None and (own == GROUP_QUERY or name == "vision"):
            content = rewritten(path, graph, own)
        saved.files[name], saved.read_bytes[name] = _save(graph, content or path, bundle, work, request)
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


def _manifest(
    bundle: Bundle, variant: Variant, work: Path, attention: str, saved: _Saved, parts: PartCodes, version: str
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
        int8=parts.done[8],
        int4=parts.done[4],
        library=saved.library,
        read_bytes=saved.read_bytes,
    )
