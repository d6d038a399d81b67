"""Write a checkpoint as a bundle: plan the weights, write the graphs, stream the weights, write the manifest."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from sdrpn.bundle.bundle import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Bundle,
    FileInfo,
    GraphInfo,
    Manifest,
    TensorInfo,
    Variant,
    file_digest,
    open_bundle,
)
from sdrpn.bundle.graphs import GraphName, graph_named
from sdrpn.checkpoint import Checkpoint, open_checkpoint
from sdrpn.checkpoint.tokenizer import find_tokenizer, write_tokenizer
from sdrpn.errors import BadBundle, BadInput
from sdrpn.export.dialects import DIALECTS
from sdrpn.export.gate import gate_graph
from sdrpn.export.graph import GraphAuthor
from sdrpn.export.llm import tail_graph, trunk_graph
from sdrpn.export.options import ExportOptions
from sdrpn.export.quantized_weights import Calibration
from sdrpn.export.resume import FinishedFiles
from sdrpn.export.rope import exported_frequencies
from sdrpn.export.rpn import rpn_graph
from sdrpn.export.tables import Tables
from sdrpn.export.vision_author import vision_author
from sdrpn.export.weights import onnx_type
from sdrpn.families.registry import family_of
from sdrpn.host.atomic import replacing_directory, require_free_space
from sdrpn.host.progress import Advance, Grown, uncounted, unseen
from sdrpn.method.geometry import Fit
from sdrpn.method.policy import ModelPolicy, RoiChange
from sdrpn.method.spec import AskedScheme, ModelSpec

__all__ = ["export_bundle"]

_DEFAULTS = ExportOptions()
_LEAST_IMAGE_TOKENS = 4  # of pictures whose number of tokens varies
# Allowance for graphs, manifest and tokenizer.
_SMALL_FILES_BYTES = 32 * 1024 * 1024


@dataclass
class _Progress:
    """Counts bytes for a progress bar."""

    report: Advance
    total_bytes: int = 0
    done_bytes: int = field(default=0, init=False)

    def advance(self, size_bytes: int) -> None:
        """Count further bytes."""
        self.done_bytes += size_bytes
        self.report(self.done_bytes, self.total_bytes)


def export_bundle(
    checkpoint: Path,
    out: Path,
    options: ExportOptions = _DEFAULTS,
    *,
    vision_tower: Path | None = None,
    rpn: Path | None = None,
    base: Path | None = None,
    projector: Path | None = None,
    fit: Fit = "pad",
    resume: bool = False,
    calibration: Calibration | None = None,
    template: str | None = None,
    scheme: AskedScheme = "auto",
    threshold: float | None = None,
    progress: Advance = unseen,
    note: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Write `checkpoint` as the variants `options.variants` of the bundle `out`; other variants there are kept.

    Args:
        checkpoint: a folder in any of the layouts that `open_checkpoint` reads
        out: a new or empty folder, or a bundle of the same checkpoint
        vision_tower, rpn, base, projector, fit: see `open_checkpoint`
        calibration: for the method gptq; `options.calibration` must be its digest
        template: see `open_checkpoint`; None: the checkpoint's own, or the one given to an earlier export of this
            bundle
        scheme: see `open_checkpoint`; "auto": also as an earlier export of this bundle
        threshold: of the RoI map, in place of the checkpoint's own; None: that, or what the bundle has already
        resume: reuse weight files that an interrupted export with `resume` finished, and keep those of this one if it
            is interrupted, in a hidden folder beside `out`
        progress: called with (bytes written, bytes in all)
        note: called with remarks about the checkpoint, before anything is written
    Returns: the manifest as written.
    Raises: BadInput or BadCheckpoint before anything is written; RunFailed when the disk is full. Whatever
        happens, `out` is either as it was or complete.
    """
    if options.calibration != (None if calibration is None else calibration.digest):
        raise BadInput("the options name another calibration than the given one; give both or none")
    existing = _existing_bundle(out)
    template = template or (None if existing is None else existing.manifest.given_template)
    if scheme == "auto" and existing is not None and existing.spec.rpn is not None:
        scheme = existing.spec.rpn.scheme
    with open_checkpoint(
        checkpoint,
        vision_tower=vision_tower,
        rpn=rpn,
        base=base,
        projector=projector,
        fit=fit,
        template=template,
        scheme=scheme,
    ) as source:
        tokenizer = None if find_tokenizer(source) is None else source.tokenizer_dir
        for text in (source.pictures, *source.notes):
            note(text)
        max_context = _checked_context(source.spec, options.max_context)
        if source.spec.vision.image_tokens >= max_context:
            note(
                f"pictures: up to {source.spec.vision.image_tokens} tokens, which the context of {max_context} has no "
                "room for; ask with fewer image tokens"
            )
        digest = source.digest()
        if existing is not None:
            _require_same_model(existing, source.spec, max_context, digest)
        policy = _policy(source, existing, threshold)
        plan = _BundlePlan(source.spec, options, max_context, tokenizer, template, policy)
        kept = frozenset(existing.manifest.files) if existing is not None else frozenset[str]()
        finished = FinishedFiles(out, f"{version('sdrpn')} {digest} {max_context}") if resume else None
        return _write(out, plan, source, digest, existing, kept, finished, calibration, progress)


class _BundlePlan:
    """All graphs and weight tables of one export, before a byte is written."""

    def __init__(
        self,
        spec: ModelSpec,
        options: ExportOptions,
        max_context: int,
        tokenizer: Path | None,
        template: str | None,
        policy: ModelPolicy | None,
    ) -> None:
        """`tokenizer`: its folder; `template`: the prompt template, if not the checkpoint's."""
        self.spec, self.options, self.max_context = spec, options, max_context
        self.tokenizer, self.policy = tokenizer, policy
        self.given: dict[str, str] = {} if template is None else {"template": "given"}
        self.tables = Tables(spec, options)

    def graph_files(self) -> Iterator[str]:
        """Names of the files that `write_graphs` makes."""
        for variant in self.options.variants:
            yield from (_graph_file(graph, variant) for graph in self.tables.names)

    def write_graphs(self, folder: Path, calibration: Calibration | None) -> dict[str, Variant]:
        """Author and save all graphs: the variants by name."""
        factors = self.tables.input_factors(calibration)
        variants = self.options.variants.items()
        return {name: self._write_variant(folder, name, onnx_type(computes), factors) for name, computes in variants}

    def _write_variant(self, folder: Path, name: str, dtype: ir.DataType, factors: Mapping[str, float]) -> Variant:
        dialect, opset = DIALECTS[self.options.dialect], 0
        graphs: dict[str, GraphInfo] = {}
        # A sliding window longer than any sequence has no effect: leave it out of the mask.
        llm = dataclasses.replace(self.spec.llm, sliding_window=self.spec.llm.window_within(self.max_context))
        spec = dataclasses.replace(self.spec, llm=llm)
        for graph, table in self.tables.graphs(factors).items():
            coded = {"codes": self.options.cache_codes} if graph_named(graph).coded_caches else {}
            author = _AUTHORS[graph](spec, dialect, dtype, table, **coded)
            author.save(folder / _graph_file(graph, name))
            graphs[graph] = _graph_info(author, _graph_file(graph, name))
            opset = max(opset, author.opset)
        (embedding,) = self.tables.embedding.files
        embedding_dtype = self.tables.embedding.external_tensor("llm.embed.weight").dtype.numpy().name
        precision, quantization = self.options.precision, self.options.quantization()
        kv_cache = self.options.kv_cache
        return Variant(name, dialect.name, precision, opset, graphs, embedding, embedding_dtype, quantization, kv_cache)


def _graph_file(graph: str, variant: str) -> str:
    return f"{graph}.{variant}.onnx"


_AUTHORS: Mapping[GraphName, Callable[..., GraphAuthor]] = {
    "vision": lambda spec, *rest: vision_author(spec).graph(spec, *rest),
    "trunk": trunk_graph,
    "gate": gate_graph,
    "rpn": rpn_graph,
    "tail": tail_graph,
}


def _write(
    out: Path,
    plan: _BundlePlan,
    source: Checkpoint,
    digest: str,
    existing: Bundle | None,
    kept: frozenset[str],
    finished: FinishedFiles | None,
    calibration: Calibration | None,
    progress: Advance,
) -> Manifest:
    weight_files = plan.tables.files()
    reused = [file for file in weight_files if file in kept]
    reused_bytes = sum(weight_files[file] for file in reused)
    weight_bytes = sum(weight_files.values()) - reused_bytes
    require_free_space(out, weight_bytes + _SMALL_FILES_BYTES, advice=plan.options.numbers.smaller)
    bar = _Progress(progress, reused_bytes + 2 * weight_bytes)  # new bytes count twice: written, then hashed
    if existing is not None:
        with _advising_removal(out):
            existing.verify(reused, advance=bar.advance)
    with replacing_directory(out, exist_ok=existing is not None) as folder:
        if existing is not None:
            _link_tree(existing.path, folder)
        for name in plan.graph_files():  # a graph of an older export may be a hard link into the existing bundle
            (folder / name).unlink(missing_ok=True)
        _write_weights(folder, plan, source, kept, finished, calibration, bar.advance)
        write_tokenizer(plan.tokenizer, folder / TOKENIZER_NAME)
        variants = {
            **(existing.manifest.variants if existing is not None else {}),
            **plan.write_graphs(folder, calibration),
        }
        files = _files(folder, variants, plan.tokenizer is not None, existing, kept, bar.advance)
        if existing is not None:  # files that only the earlier form of these variants used
            for name in existing.manifest.files.keys() - files.keys():
                (folder / name).unlink(missing_ok=True)
        manifest = Manifest(
            spec=plan.spec,
            max_context=plan.max_context,
            variants=variants,
            files=files,
            tokenizer=TOKENIZER_NAME if plan.tokenizer is not None else None,
            rotary=existing.manifest.rotary if existing is not None else exported_frequencies(plan.spec.llm),
            policy=plan.policy,
            source={"checkpoint": source.path.name, "layout": source.layout, "sha256": digest, **plan.given},
            tools={name: version(name) for name in ("sdrpn", "onnxscript", "onnx-ir", "numpy")},
        )
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        (folder / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")
    if finished is not None:
        finished.drop()
    return manifest


def _write_weights(
    folder: Path,
    plan: _BundlePlan,
    source: Checkpoint,
    kept: frozenset[str],
    finished: FinishedFiles | None,
    calibration: Calibration | None,
    advance: Grown,
) -> None:
    """Stream the weight files that are neither kept nor already finished."""
    if finished is None:
        plan.tables.write(folder, source, kept, advance, calibration=calibration)
        return
    sizes = {file: size for file, size in plan.tables.files().items() if file not in kept}
    taken = finished.take(folder, sizes)
    advance(sum(sizes[file] for file in taken))
    plan.tables.write(folder, source, kept | taken, advance, lambda files: finished.keep(folder, files), calibration)


def _existing_bundle(out: Path) -> Bundle | None:
    if not out.exists():
        return None
    if not out.is_dir():
        raise BadInput(
            f"{out} is a file; expected a new or an empty folder, or a bundle: name another", options=("out",)
        )
    if not any(out.iterdir()):
        return None
    if not (out / MANIFEST_NAME).exists():
        raise BadInput(
            f"{out} is not empty and not a bundle (it has no {MANIFEST_NAME}); name another", options=("out",)
        )
    with _advising_removal(out):
        bundle = open_bundle(out)
        bundle.verify(bundle.manifest.files, large=False)
    return bundle


@contextmanager
def _advising_removal(out: Path) -> Iterator[None]:
    """An error in the existing bundle must not advise to export again, which would fail the same way."""
    try:
        yield
    except BadBundle as error:
        raise BadBundle(f"{error}: remove {out} first, or name another folder", options=("out",)) from error


def _require_same_model(existing: Bundle, spec: ModelSpec, max_context: int, digest: str) -> None:
    found = existing.manifest
    differences = [
        ("checkpoint digest", str(found.source.get("sha256"))[:12], digest[:12]),
        ("max_context", found.max_context, max_context),
        ("prompt", found.spec.prompt.template[:40], spec.prompt.template[:40]),
        ("model description", found.spec, spec),
    ]
    for what, there, wanted in differences:
        if there != wanted:
            detail = "" if what == "model description" else f" ({there} there, {wanted} here)"
            raise BadInput(
                f"{existing.path} holds another export: its {what} differs{detail}; name another folder",
                options=("out",),
            )


def _policy(source: Checkpoint, existing: Bundle | None, threshold: float | None) -> ModelPolicy | None:
    """By what the bundle will look again. Raises BadInput for a threshold where there is no RPN."""
    if source.spec.rpn is None:
        if threshold is not None:
            raise BadInput(
                f"{source.path} has no RPN whose map a threshold of {threshold:g} could be for; leave it out",
                options=("threshold",),
            )
        return None
    there = None if existing is None else existing.manifest.policy
    policy = there or source.policy
    if threshold is None:
        return policy
    return ModelPolicy(RoiChange(threshold).applied_to(policy.roi), "given")


def _checked_context(spec: ModelSpec, wanted: int | None) -> int:
    limit = spec.llm.max_context
    if wanted is None:
        return limit
    # Where pictures have a budget, a question can name a smaller one.
    fixed = family_of(spec).square(spec.vision) is not None
    least = (spec.vision.image_tokens if fixed else _LEAST_IMAGE_TOKENS) + 1
    if not least <= wanted <= limit:
        raise BadInput(
            f"max_context is {wanted}; expected {least} (one image and a token) to {limit} (the checkpoint's limit)",
            options=("max_context",),
        )
    return wanted


def _graph_info(author: GraphAuthor, file: str) -> GraphInfo:
    def tensors(side: str) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(tensor.name, tensor.dtype.numpy().name, tensor.dims, tensor.role, tensor.of)
            for tensor in getattr(author, side)()
        )

    return GraphInfo(author.name, file, tensors("inputs"), tensors("outputs"), author.weight_files())


def _link_tree(source: Path, folder: Path) -> None:
    """Link the bundle's files into `folder`; copy them if the file system has no links."""
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_symlink() and path.is_dir():  # such as engines on another disk; the new folder lies beside the old
            target.symlink_to(path.readlink(), target_is_directory=True)
        elif path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copy2(path, target)


def _files(
    folder: Path,
    variants: Mapping[str, Variant],
    tokenizer: bool,
    existing: Bundle | None,
    kept: frozenset[str],
    advance: Grown,
) -> dict[str, FileInfo]:
    """Sizes and digests of all files; those of existing weight files are reused."""
    names = {file for variant in variants.values() for file in variant.files}
    if tokenizer:
        names.add(TOKENIZER_NAME)
    files = {}
    for name in sorted(names):
        if existing is not None and name in kept and name.endswith(".bin"):
            files[name] = existing.manifest.files[name]
        else:
            progress = advance if name.endswith(".bin") else uncounted
            files[name] = FileInfo((folder / name).stat().st_size, file_digest(folder / name, progress))
    return files
