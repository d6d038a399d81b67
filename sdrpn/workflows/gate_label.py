"""Make labels to train a gate on, from a checkpoint's own answers at ascending views of each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.teacher import ModelPrecision, require_device, some_questions
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.gate.labelling import GateCounts
    from sdrpn.gate.views import Viewer
    from sdrpn.labels.questions import DataQuestion

__all__ = ["GateLabelRequest", "GateLabelled", "label_gate"]

_EXTRA = ("train", "sdrpn gate-label")


@dataclass(frozen=True)
class GateLabelRequest(CheckedFields):
    """Which model answers which questions at which views, and where the labels are written.

    checkpoint: with its RPN, which may lie beside it
    data: JSON Lines: image, question, and the true answer where `agree_with` is "truth"
    images: folder that the image names are relative to
    out: folder to write: new or empty, or with `resume` the folder of a run with the same settings
    resolutions: numbers of image tokens, ascending, three or more; (): one look and two, for a model that sees squares
    agreement: how answers are compared: "text", "exact", "number" or "letter"
    agree_with: what is right: "truth", the answer in the data, or "highest", that of the best view
    threshold: of the RoI map, for the second look; None: the model's own
    limit: only the first `limit` questions; None: all
    max_new_tokens: maximum length of an answer
    precision, device, threads: as for `TeacherRequest`
    shard_questions: questions per file
    part: which files this process makes; the last of several, with the same `out`, counts and reports
    batch: questions that are answered at once
    """

    checkpoint: CheckpointParts
    data: Path
    images: Path
    out: Path
    resolutions: Sequence[int] = ()
    agreement: Literal["text", "exact", "number", "letter"] = "text"
    agree_with: Literal["truth", "highest"] = "truth"
    threshold: float | None = None
    limit: int | None = None
    max_new_tokens: int = 128
    precision: ModelPrecision = "fp32"
    device: str = "cpu"
    threads: int | None = None
    resume: bool = False
    shard_questions: int = 256
    part: Part = WHOLE
    batch: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise BadInput(f"batch is {self.batch}; expected a whole number of at least 1", options=("batch",))

    def viewer(self, checkpoint: Checkpoint) -> Viewer:
        """Load the model. Raises BadInput for views that it does not have, or a device that cannot be used here."""
        from sdrpn.checkpoint.tokenizer import tokenizer_of
        from sdrpn.gate.views import Viewer, view_names
        from sdrpn.method.policy import RoiChange
        from sdrpn.model import model_from_checkpoint
        from sdrpn.model.dtypes import torch_dtype

        views = view_names(checkpoint.spec, tuple(self.resolutions))
        policy = RoiChange(self.threshold).applied_to(checkpoint.policy.roi)
        tokenizer, device = tokenizer_of(checkpoint), require_device(self.device)
        model = model_from_checkpoint(checkpoint, torch_dtype(self.precision)).to(device)
        return Viewer(model, tokenizer, self.images, views, policy, self.max_new_tokens, self.batch)

    def questions(self) -> list[DataQuestion]:
        """Read the questions. Raises BadInput for files or folders that are missing or malformed."""
        return some_questions(self.data, self.images, self.limit)


@dataclass(frozen=True)
class GateLabelled:
    """A folder of gate labels.

    counts: outcomes of the questions
    difference: questions by their cases by the true answers and by the best view; None without true answers
    provenance: everything that decides the labels, as in gate.json
    page: a report to look at
    is_complete: False while files of other parts are missing: nothing is counted yet
    """

    out: Path
    images: Path
    counts: GateCounts
    difference: dict[str, int] | None
    provenance: dict[str, Any]
    page: Path
    is_complete: bool = True

    def require_trainable(self) -> None:
        """Raise RunFailed where no gate can be trained on the labels."""
        lacking = self.counts.lacking if self.is_complete else None
        if lacking is not None:
            wrong_at_best = self.provenance["rule"]["target"] == "truth" and self.counts.cases["unsettled"]
            other = ", or compare with the highest view" if wrong_at_best else ""
            options = ("agree_with highest",) if wrong_at_best else ()
            raise RunFailed(f"{self.out} has {lacking}{other}", options=options)

    def to_json(self) -> dict[str, Any]:
        """The result as `sdrpn gate-label --json` prints it."""
        return {
            **self.provenance,
            "images": self.images,
            "counts": self.counts if self.is_complete else None,
            "truth_and_highest": self.difference,
        }


def label_gate(request: GateLabelRequest, progress: ShowProgress = show_nothing) -> GateLabelled:
    """Let a checkpoint answer questions at ascending views, and find which of them another look helps.

    Returns: the folder that was written, for `train_gate`
    Raises: BadInput and BadCheckpoint before the model answers; MissingDependency without sdrpn[train]
    """
    with importing_extra(*_EXTRA):
        import sdrpn.labels.questions  # noqa: F401
    questions = request.questions()
    request.checkpoint.look(*_EXTRA)
    with importing_extra(*_EXTRA):
        import torch  # noqa: F401

        from sdrpn.gate.labelling import GateLabelRun, counted, label_for_gate
        from sdrpn.gate.report import REPORT, rule_difference, write_gate_report
        from sdrpn.gate.rule import GateRule
        from sdrpn.gate.views import require_views
    with (
        request.checkpoint.open() as checkpoint,
        torch_threads(request.threads, checkpoint.spec),
        progress("gate-label", "questions") as advance,
    ):
        require_views(checkpoint.spec, tuple(request.resolutions))
        # Of two views the better one alone settles an answer.
        rule = GateRule(request.agreement, request.agree_with, settling=2 if request.resolutions else 1)
        run = GateLabelRun(checkpoint.digest(), tuple(questions), rule, request.shard_questions)
        viewer = request.viewer(checkpoint)
        provenance, out = run.provenance(viewer), request.out
        found = label_for_gate(
            run,
            viewer,
            out,
            resume=request.resume,
            part=request.part,
            progress=advance,
            finish=lambda counts: write_gate_report(
                out, request.images, counts, provenance, rule_difference(out, rule)
            ),
        )
    counts = counted((), len(viewer.views)) if found is None else found
    difference = None if found is None else rule_difference(out, rule)
    page, images = out / REPORT, request.images.resolve()
    return GateLabelled(out, images, counts, difference, provenance, page, is_complete=found is not None)
