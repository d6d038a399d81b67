"""Export a checkpoint as a bundle, calibrated on questions if the precision needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdrpn.bundle.numerics import DialectName, PrecisionName, precision_named
from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.method.policy import RoiChange
from sdrpn.workflows.checkpoint_parts import CheckpointParts, as_path
from sdrpn.workflows.teacher import require_device
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Manifest
    from sdrpn.export import ExportOptions
    from sdrpn.export.quantized_weights import Calibration

__all__ = ["CalibrationData", "ExportRequest", "ExportResult", "export", "export_bundle"]

_EXTRA = ("export", "sdrpn export")


@dataclass(frozen=True)
class CalibrationData(CheckedFields):
    """The questions of a calibration; a few dozen are enough.

    questions: JSON Lines: image, question, optionally answer
    images: folder that the image names are relative to
    device: where PyTorch runs the model: "cpu", "cuda", "cuda:1", ...
    threads: of the CPU; None: one per free core
    """

    questions: Path
    images: Path
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class ExportRequest(CheckedFields):
    """Which checkpoint to export, and how.

    checkpoint: its `template` is a prompt that the family knows by name, or a file with a Jinja chat template
    out: folder to write: new, empty, or a bundle of the same checkpoint, which gets a further variant
    precision, dialect, max_context, block, method, keep, int8, kv_cache: see
        `sdrpn.export.ExportOptions`; None: as there
    calibration: for the method gptq and for nvfp4, and for fp8 to round inputs as well
    resume: continue an interrupted export of the same checkpoint that was started with `resume`
    threshold: of the RoI map, for the bundle's policy; None: that of the RPN's training, else the official one

    Raises: BadInput for an option that the precision does not have
    """

    checkpoint: CheckpointParts
    out: Path
    precision: PrecisionName = "fp32"
    dialect: DialectName = "fused"
    max_context: int | None = None
    block: int | None = None
    method: Literal["rtn", "hqq", "gptq"] | None = None
    keep: tuple[str, ...] | None = None
    int8: tuple[str, ...] | None = None
    kv_cache: Literal["int8", "fp8"] | None = None
    calibration: CalibrationData | None = None
    resume: bool = False
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        RoiChange(self.threshold)  # refuses what is no threshold
        numbers = precision_named(self.precision)
        misplaced = [name for name in self._quantization() if not (numbers.is_quantized and name == "keep")]
        if misplaced and numbers.weights != "integers":
            raise BadInput(
                f"{misplaced[0]} is for the precisions int8 and int4; got {self.precision}: leave it out",
                options=misplaced[:1],
            )

    def options(self, calibration: str | None) -> ExportOptions:
        """The export options, with the digest of a calibration. Raises BadInput for contradicting options."""
        from sdrpn.export import ExportOptions

        return ExportOptions(
            self.precision,
            self.dialect,
            self.max_context,
            kv_cache=self.kv_cache,
            calibration=calibration,
            **self._quantization(),
        )

    def _quantization(self) -> dict[str, Any]:
        names = ("block", "method", "keep", "int8")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class ExportResult:
    """The bundle that was written.

    manifest: of the whole bundle
    variants: those that this export added, the one for CPUs first
    size_bytes: of the files of these variants
    notes: remarks about the checkpoint
    """

    out: Path
    manifest: Manifest
    variants: tuple[str, ...]
    size_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as `sdrpn export --json` prints it."""
        return {
            "bundle": self.out,
            "variant": self.variants[0],
            "variants": sorted(self.manifest.variants),
            "size_bytes": self.size_bytes,
            "max_context": self.manifest.max_context,
            "rpn": self.manifest.spec.rpn is not None,
            "policy": None if self.manifest.policy is None else self.manifest.policy.to_json(),
            "gate_threshold": self.manifest.gate_threshold,
            "tokenizer": self.manifest.tokenizer is not None,
            "prompt": self.manifest.spec.prompt.template,
            "source": dict(self.manifest.source),
            "notes": self.notes,
        }


def export_bundle(
    checkpoint: Path | str,
    out: Path | str,
    *,
    precision: PrecisionName = "fp32",
    dialect: DialectName = "fused",
    max_context: int | None = None,
    block: int | None = None,
    method: Literal["rtn", "hqq", "gptq"] | None = None,
    keep: tuple[str, ...] | None = None,
    int8: tuple[str, ...] | None = None,
    kv_cache: Literal["int8", "fp8"] | None = None,
    calibration: CalibrationData | None = None,
    vision_tower: Path | str | None = None,
    rpn: Path | str | None = None,
    base: Path | str | None = None,
    projector: Path | str | None = None,
    fit: Literal["pad", "crop"] = "pad",
    template: str | None = None,
    threshold: float | None = None,
    resume: bool = False,
    download: bool = False,
    scheme: Literal["auto", "sd-rpn", "q-zoom"] = "auto",
    progress: ShowProgress = show_nothing,
) -> ExportResult:
    """Write a checkpoint as a bundle: a folder with a manifest, ONNX graphs, weights and a tokenizer.

    Args:
        checkpoint, vision_tower, rpn, base, projector, fit, scheme, download: see `sdrpn.checkpoint.open_checkpoint`
        out: folder to write: new, empty, or a bundle of the same checkpoint, which gets a further variant
        precision, dialect, max_context, block, method, keep, int8, kv_cache: see `sdrpn.export.ExportOptions`
        calibration, resume, threshold: see `ExportRequest`
        template: a prompt that the family knows by name, or the path of a Jinja chat template
        progress: (title, unit; None for bytes) -> a context manager that gives a function of (done, total)
    Raises: BadInput or BadCheckpoint before anything is written; MissingDependency without sdrpn[export], or,
        for a calibration, sdrpn[train]; RunFailed when the disk is full. `out` is either as it was or complete.
    """
    parts = CheckpointParts(
        checkpoint,
        vision_tower,
        rpn,
        base,
        projector,
        fit=fit,
        template=template,
        download=download,
        scheme=scheme,
    )
    request = ExportRequest(
        parts,
        Path(out),
        precision,
        dialect,
        max_context,
        block,
        method,
        keep,
        int8,
        kv_cache,
        calibration,
        resume,
        threshold,
    )
    return export(request, progress)


def export(request: ExportRequest, progress: ShowProgress = show_nothing) -> ExportResult:
    """See `export_bundle`."""
    parts = _with_template(request.checkpoint.found())
    dataclasses.replace(parts, template=parts.template or _template_there(request.out)).look(*_EXTRA)
    with importing_extra(*_EXTRA):
        from sdrpn.export import export_bundle as write_bundle

    # Contradicting options are reported before a calibration is prepared or run.
    request.options(None if request.calibration is None else "to be made")
    notes: list[str] = []
    with _calibrated(request, parts, progress) as calibration:
        options = request.options(None if calibration is None else calibration.digest)
        with progress("export", None) as advance:
            manifest = write_bundle(
                Path(parts.path),
                request.out,
                options,
                vision_tower=as_path(parts.vision_tower),
                rpn=as_path(parts.rpn),
                base=as_path(parts.base),
                projector=as_path(parts.projector),
                fit=parts.fit,
                resume=request.resume,
                calibration=calibration,
                template=parts.template,
                scheme=parts.scheme,
                threshold=request.threshold,
                progress=advance,
                note=notes.append,
            )
    written = {file for name in options.variants for file in manifest.variants[name].files}
    size_bytes = sum(manifest.files[name].size_bytes for name in written)
    return ExportResult(request.out, manifest, tuple(options.variants), size_bytes, tuple(notes))


def _with_template(parts: CheckpointParts) -> CheckpointParts:
    """Replace a template's name or path by its text."""
    with importing_extra(*_EXTRA):
        from sdrpn.checkpoint import named_template

    return parts if parts.template is None else dataclasses.replace(parts, template=named_template(parts.template))


def _template_there(out: Path) -> str | None:
    """The template that an existing bundle was exported with, if one was given."""
    from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle

    return open_bundle(out).manifest.given_template if (out / MANIFEST_NAME).is_file() else None


@contextmanager
def _calibrated(request: ExportRequest, parts: CheckpointParts, progress: ShowProgress) -> Iterator[Calibration | None]:
    """Collect the inputs of every matrix while the questions are answered, layer by layer on demand."""
    if request.calibration is None:
        yield None
        return
    data = request.calibration
    with importing_extra("train", "sdrpn export --calibrate"):
        from sdrpn.calibration import CalibrationPrompts, LayerInputs
    from sdrpn.checkpoint.tokenizer import tokenizer_of
    from sdrpn.labels.questions import read_questions

    device, questions = require_device(data.device), tuple(read_questions(data.questions))
    with parts.open() as source:
        prompts = CalibrationPrompts(questions, data.images, tokenizer_of(source))
        with torch_threads(data.threads), progress("calibrate", "layers") as advance:
            rows = prompts.rows(source)
            moments = request.method == "gptq"
            yield LayerInputs(source, rows, prompts.digest, device=device, moments=moments, advance=advance)
