"""What both ways of comparing a bundle with its checkpoint share: running graphs and sessions, and what that needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadInput
from sdrpn.families.registry import fit_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.workflows.checkpoint_parts import CheckpointParts

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, Variant
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.compare.answers import AnswerQuestion, TrialQuestion
    from sdrpn.compare.graphs import Array, Check
    from sdrpn.host.progress import Advance, ShowProgress
    from sdrpn.runtime import Session
    from sdrpn.runtime.backends.runner import Runner

__all__ = [
    "GraphRuns",
    "Steps",
    "VerifyRequest",
    "answers_of",
    "compare_source",
    "questions_of",
    "require_memory",
    "require_torch",
    "source_of",
    "verify_files",
]


@dataclass(frozen=True)
class VerifyRequest(CheckedFields):
    """Which bundle is compared with which checkpoint, and how.

    checkpoint: the one that it was exported from; None: a folder of its name here or beside the bundle
    vision_tower, rpn, base, projector: as given to the export
    target: the graphs and engines of this target, a name or a file; None: all variants
    variant: only this variant; None: all, or the target's
    exact: compare graph by graph, then answers, with the reference, instead of each precision's gates
    threads: of the CPU, for both; None: one per free core, and a single one for a small model
    """

    bundle: Path
    checkpoint: Path | str | None = None
    vision_tower: Path | str | None = None
    rpn: Path | str | None = None
    base: Path | str | None = None
    projector: Path | str | None = None
    target: str | None = None
    variant: str | None = None
    exact: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and (self.exact or self.variant is not None):
            other = "exact" if self.exact else "variant"
            raise BadInput(
                f"all engines of a target are compared with gates; leave out {other}, or the target",
                options=(other, "target"),
            )


def compare_source(bundle: Bundle, source: Checkpoint) -> Iterator[Check]:
    """Whether the bundle names this checkpoint as its source, and describes the same model."""
    from sdrpn.compare.graphs import Check

    digest, named = source.digest(), str(bundle.manifest.source.get("sha256"))
    yield Check("all", "bundle", "checkpoint", "digest", named, digest, ok=named == digest)
    pairs = [_flat(spec.to_json()) for spec in (bundle.spec, source.spec)]
    differing = sorted(key for key in pairs[0].keys() | pairs[1].keys() if pairs[0].get(key) != pairs[1].get(key))
    found, expected = (", ".join(f"{key} {pair.get(key, 'absent')}" for key in differing) or "equal" for pair in pairs)
    yield Check("all", "bundle", "checkpoint", "model description", found, expected, ok=not differing)
    if bundle.manifest.tokenizer is not None and source.tokenizer_dir is not None:
        yield _compare_prompts(bundle, source)


def _compare_prompts(bundle: Bundle, source: Checkpoint) -> Check:
    """Check that the bundle tokenizes a question in words as the checkpoint does."""
    from sdrpn.checkpoint.tokenizer import tokenizer_of
    from sdrpn.compare.answers import QUESTION_IN_WORDS
    from sdrpn.compare.graphs import Check
    from sdrpn.families.registry import prompt_of
    from sdrpn.text.prompt import load_tokenizer

    name = bundle.manifest.tokenizer
    bundle.verify([name] if name else [])
    pairs = ((load_tokenizer(bundle.file(str(name))), bundle.spec), (tokenizer_of(source), source.spec))
    prompts = [prompt_of(spec, tokenizer, QUESTION_IN_WORDS) for tokenizer, spec in pairs]
    found, expected = (
        f"{' '.join(map(str, (*prompt.ids_before, '<image>', *prompt.ids_after)))}" for prompt in prompts
    )
    return Check("all", "bundle", "checkpoint", "prompt", found[:80], expected[:80], ok=found == expected)


def questions_of(bundle: Bundle, source: Checkpoint) -> tuple[TrialQuestion, ...]:
    """Seeded questions as token ids, and one as text if the bundle has a tokenizer."""
    from sdrpn.checkpoint.tokenizer import tokenizer_of
    from sdrpn.compare.answers import question_in_words, trial_questions

    questions = trial_questions(source.spec)
    if bundle.manifest.tokenizer is None or source.tokenizer_dir is None:
        return questions
    return (*questions, question_in_words(source.spec, tokenizer_of(source)))


def answers_of(session: Session, steps: Steps) -> AnswerQuestion:
    """A function that answers a trial question through a session."""
    from sdrpn.compare.answers import FoundAnswer
    from sdrpn.errors import RunFailed
    from sdrpn.runtime import Sampling

    def answer(question: TrialQuestion) -> FoundAnswer:
        steps.take()
        limits: dict[str, Any] = {"roi": question.roi, "max_new_tokens": question.max_new_tokens, "trace": True}
        limits["sampling"] = Sampling(repetition_penalty=1.0)  # as the reference answers
        if question.text is not None:
            answer = session.answer(question.image, question.text, **limits)
        else:
            ids = question.ids_before, question.ids_after
            answer = session.answer_ids(question.image, *ids, decide=question.decide, **limits)
        if answer.trace is None:
            raise RunFailed("the session kept no trace; report this")
        return FoundAnswer(answer.token_ids, answer.trace.roi_logits, answer.trace.decision)

    return answer


class GraphRuns:
    """Runs the graphs of a variant on ONNX Runtime, with one of them loaded at a time."""

    def __init__(self, bundle: Bundle, variant: str, steps: Steps, threads: int | None = None) -> None:
        from sdrpn.runtime.backends import open_backend
        from sdrpn.runtime.backends.onnxruntime_info import require_release

        require_release(bundle, bundle.variant(variant))
        self._bundle, self._variant, self._steps = bundle, bundle.variant(variant), steps
        self._backend = open_backend("onnxruntime", threads, largest_matrix=bundle.spec.llm.largest_matrix)
        self._name = ""
        self._runner: Runner | None = None

    def __enter__(self) -> GraphRuns:
        return self

    def __exit__(self, *error: object) -> None:
        if self._runner is not None:
            self._runner.close()

    def run(self, name: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Arrays by input name -> arrays by output name; bf16 as a simulated graph takes it."""
        from sdrpn.runtime.backends.arrays import run_on_arrays

        known = {key: array.astype("float32") if array.dtype == "bfloat16" else array for key, array in feeds.items()}
        return run_on_arrays(self._backend, self._open(name), known)

    def _open(self, name: str) -> Runner:
        if self._runner is None or self._name != name:
            if self._runner is not None:
                self._runner.close()
            self._steps.take()
            graph = self._variant.graphs[name]
            self._runner, self._name = self._backend.load(graph, self._bundle.file(graph.file)), name
        return self._runner


class Steps:
    """Counts steps from `done` on, for a progress bar."""

    def __init__(self, advance: Advance, done: int, total: int) -> None:
        self._advance, self._done, self._total = advance, done, total

    def take(self) -> None:
        """Count one more step."""
        self._done += 1
        self._advance(self._done, self._total)


def require_torch() -> None:
    """Raises MissingDependency where PyTorch or onnx cannot be imported."""
    from sdrpn.errors import MissingDependency

    try:
        import torch

        torch.inference_mode  # noqa: B018  # a folder named torch on the path can be imported too
        import onnx

        onnx.load  # noqa: B018
    except (ImportError, AttributeError) as error:
        missing = "onnx" if "onnx" in str(error) else "PyTorch"
        raise MissingDependency(
            f"verify runs the checkpoint in PyTorch, and {missing} is not installed; pip install 'sdrpn[train]'"
        ) from error


def verify_files(bundle: Bundle, variants: Iterable[Variant], progress: ShowProgress) -> None:
    """Check digests first, so that a changed file is not reported as a wrong graph."""
    names = sorted({name for variant in variants for name in variant.files})
    total_bytes = sum(bundle.manifest.files[name].size_bytes for name in names if name in bundle.manifest.files)
    done_bytes = 0
    with progress("verify", None) as advance:

        def more(size_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += size_bytes
            advance(done_bytes, total_bytes)

        bundle.verify(names, advance=more)


def require_memory(bundle: Bundle, source: Checkpoint, variants: Iterable[Variant]) -> None:
    """Raise RunFailed if the model in float32 and the graphs of one variant do not fit in memory."""
    from math import prod

    from sdrpn.errors import RunFailed
    from sdrpn.host.machine import read_machine
    from sdrpn.host.sizes import text_from_bytes

    files = bundle.manifest.files
    graph_bytes = max(sum(files[name].size_bytes for name in variant.files) for variant in variants)
    model_bytes = 4 * sum(prod(source.shape(name)) for name in source.names)
    available_bytes = read_machine().memory_available_bytes
    missing_bytes = model_bytes + graph_bytes - (available_bytes or model_bytes + graph_bytes)
    if missing_bytes > 0:
        raise RunFailed(
            f"verify needs {text_from_bytes(model_bytes)} of memory for the checkpoint in float32 and "
            f"{text_from_bytes(graph_bytes)} for the graphs: {text_from_bytes(missing_bytes)} are missing; use a "
            "machine with more memory, or name the smallest variant",
            options=("variant",),
        )


def _flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested entries under dotted names."""
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def source_of(bundle: Bundle, request: VerifyRequest) -> CheckpointParts:
    """The checkpoint of the bundle: as given, else the shipped bundle's, else a folder of its name.

    Raises: BadInput if it is not found
    """
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.bundle.shipped import DEMO_BUNDLE, shipped_source

    checkpoint, rpn = request.checkpoint, request.rpn
    # The shipped bundle, or a copy of it that engines were built in.
    if checkpoint is None and bundle.manifest.source == open_bundle(DEMO_BUNDLE).manifest.source:
        checkpoint, shipped_rpn = shipped_source()
        rpn = rpn or shipped_rpn
    return CheckpointParts(
        checkpoint or _checkpoint_beside(bundle),
        vision_tower=request.vision_tower,
        rpn=rpn,
        base=request.base,
        projector=request.projector,
        fit=fit_of(bundle.spec),
        template=bundle.manifest.given_template,
        scheme="auto" if bundle.spec.rpn is None else bundle.spec.rpn.scheme,
    )


def _checkpoint_beside(bundle: Bundle) -> Path:
    """Find the checkpoint by the name in the manifest; `compare_source` compares its digest."""
    name = str(bundle.manifest.source.get("checkpoint") or "")
    places = [Path(name), bundle.path.resolve().parent / name] if name and Path(name).name == name else []
    for place in places:
        if place.is_dir():
            return place
    raise BadInput(
        f"the checkpoint of {bundle.path}, {name or 'whose name is not known'}, is neither here nor beside the bundle; "
        "say where it is",
        options=("checkpoint",),
    )
