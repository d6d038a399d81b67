"""`sdrpn compare`: does a bundle still say what its checkpoint says?

The JSON form is an object with these entries, which only ever gain new ones while `format_version` is 1:
    format_version  1
    bundle          the folder
    checkpoint      the folder
    ok              whether every check passed
    checks          list of sdrpn.compare.graphs.Check: variant, graph, kind, tensor, found, expected, limit, ok, note
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdrpn.bundle import Bundle, Variant
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.cli.progress import Advance
    from sdrpn.compare.answers import Question
    from sdrpn.compare.graphs import Array, Check
    from sdrpn.compare.signatures import GraphSignature
    from sdrpn.model import SdRpnModel
    from sdrpn.runtime.runner import Runner

HELP = "compare a bundle with the checkpoint that it came from"
DESCRIPTION = """\
Run every graph of a bundle against the same part of the checkpoint in PyTorch: names, axes, shapes and values, in that
order; then the whole: RoI map, boxes and generated tokens. Exits 1 when something differs by more than it may.
Runs on the CPU, with the model in float32 beside the bundle's graphs. Needs the [train] extra.

  sdrpn compare bundle --checkpoint llava-v1.5-7b-roi-K15T3 --variant fused-fp16
"""

FORMAT_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `sdrpn export` wrote")
    parser.add_argument(
        "--checkpoint", metavar="CHECKPOINT", type=Path, required=True, help="folder that the bundle was exported from"
    )
    parser.add_argument("--vision-tower", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--rpn", metavar="FILE", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--base", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--variant", metavar="NAME", help="compare this variant only (default: all)")
    parser.add_argument("--json", action="store_true", help="print every check as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare, print every check, and raise RunFailed where one failed."""
    _require_torch()
    from sdrpn.bundle import open_bundle
    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.errors import RunFailed

    bundle = open_bundle(args.bundle)
    variants = list(bundle.manifest.variants.values()) if args.variant is None else [bundle.variant(args.variant)]
    _verify(bundle, variants)
    with open_checkpoint(args.checkpoint, vision_tower=args.vision_tower, rpn=args.rpn, base=args.base) as source:
        _require_memory(bundle, source, variants)
        checks = list(_compare(bundle, source, variants))
    if args.json:
        _print_as_json(args, checks)
    else:
        _print_as_table(checks)
    failed = [check for check in checks if not check.ok]
    if failed:
        advice = (
            "name the checkpoint that it was exported from, with the same --vision-tower, --rpn and --base"
            if failed[0].kind == "checkpoint"
            else "export the checkpoint again"
        )
        raise RunFailed(
            f"{args.bundle} differs from {args.checkpoint}: {len(failed)} of {len(checks)} checks failed, first "
            f"{_place(failed[0])}: {_difference(failed[0])}; {advice}"
        )
    return 0


# What is compared ----------------------------------------------------------------------------------------------------


def _compare(bundle: Bundle, source: Checkpoint, variants: list[Variant]) -> Iterator[Check]:
    from sdrpn.cli.progress import progress
    from sdrpn.compare.answers import trial_questions
    from sdrpn.model import model_from_checkpoint

    questions = trial_questions(source.spec)
    steps_each = len(bundle.variant().graphs) + 1 + len(questions)  # 1: the embedding table
    total = 2 + len(variants) * steps_each
    with progress("compare", "steps") as advance:
        advance(1, total)
        yield from _compare_source(bundle, source)
        advance(2, total)
        model = model_from_checkpoint(source)
        for index, variant in enumerate(variants):
            yield from _compare_variant(
                bundle, variant, model, questions, _Steps(advance, 2 + index * steps_each, total)
            )


def _compare_source(bundle: Bundle, source: Checkpoint) -> Iterator[Check]:
    """Whether the bundle names this checkpoint as its source, and describes the same model."""
    from sdrpn.compare.graphs import Check

    digest, named = source.digest(), str(bundle.manifest.source.get("sha256"))
    yield Check("all", "bundle", "checkpoint", "digest", named, digest, ok=named == digest)
    pairs = [_flat(spec.to_json()) for spec in (bundle.spec, source.spec)]
    differing = sorted(key for key in pairs[0].keys() | pairs[1].keys() if pairs[0].get(key) != pairs[1].get(key))
    found, expected = (", ".join(f"{key} {pair.get(key, 'absent')}" for key in differing) or "equal" for pair in pairs)
    yield Check("all", "bundle", "checkpoint", "model description", found, expected, ok=not differing)


def _compare_variant(
    bundle: Bundle, variant: Variant, model: SdRpnModel, questions: tuple[Question, ...], steps: _Steps
) -> Iterator[Check]:
    from sdrpn.compare.answers import FoundAnswer, compare_answers
    from sdrpn.compare.graphs import compare_embedding, compare_graphs
    from sdrpn.errors import RunFailed
    from sdrpn.runtime.embedding import TokenEmbedding
    from sdrpn.runtime.session import Session

    llm = bundle.spec.llm
    files = {name: _signature_from_file(bundle.file(graph.file)) for name, graph in variant.graphs.items()}
    with _Graphs(bundle, variant, steps) as graphs:
        checks = list(compare_graphs(model, variant, graphs.run, max_context=bundle.manifest.max_context, files=files))
    yield from checks
    if any(not check.ok and check.kind in ("names", "axes", "shapes") for check in checks):
        return  # graphs that cannot be run cannot answer
    steps.take()
    table = TokenEmbedding(bundle.file(variant.embedding), llm.vocabulary, llm.width, variant.embedding_dtype)
    yield from compare_embedding(model, variant, table.rows)
    with Session.open(bundle.path, variant=variant.name, verify=False) as session:

        def answer(question: Question) -> FoundAnswer:
            steps.take()
            answer = session.answer_ids(
                question.image,
                question.ids_before,
                question.ids_after,
                roi=question.roi,
                decide=question.decide,
                max_new_tokens=question.max_new_tokens,
                trace=True,
            )
            if answer.trace is None:
                raise RunFailed("the session kept no trace; report this")
            return FoundAnswer(answer.token_ids, answer.trace.roi_logits, answer.trace.decision)

        yield from compare_answers(model, questions, answer, variant=variant.name, precision=variant.precision)


class _Graphs:
    """Runs the graphs of a variant on ONNX Runtime; holds one at a time."""

    def __init__(self, bundle: Bundle, variant: Variant, steps: _Steps) -> None:
        from sdrpn.runtime.backends import open_backend

        self._bundle, self._variant, self._steps = bundle, variant, steps
        self._backend = open_backend("onnxruntime")
        self._name = ""
        self._runner: Runner | None = None

    def __enter__(self) -> _Graphs:
        return self

    def __exit__(self, *error: object) -> None:
        if self._runner is not None:
            self._runner.close()

    def run(self, name: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        from sdrpn.runtime.arrays import run_on_arrays

        return run_on_arrays(self._backend, self._open(name), feeds)

    def _open(self, name: str) -> Runner:
        if self._runner is None or self._name != name:
            if self._runner is not None:
                self._runner.close()
            self._steps.take()
            graph = self._variant.graphs[name]
            self._runner, self._name = self._backend.load(graph, self._bundle.file(graph.file)), name
        return self._runner


class _Steps:
    """Counts what was begun, from `done` on, for whoever draws it."""

    def __init__(self, advance: Advance, done: int, total: int) -> None:
        self._advance, self._done, self._total = advance, done, total

    def take(self) -> None:
        """One more step begins."""
        self._done += 1
        self._advance(self._done, self._total)


def _signature_from_file(path: Path) -> GraphSignature:
    """What an ONNX file itself declares. Raises BadBundle where it is none."""
    import onnx

    from sdrpn.bundle import TensorInfo
    from sdrpn.compare.signatures import GraphSignature
    from sdrpn.errors import BadBundle

    def tensor(value: onnx.ValueInfoProto) -> TensorInfo:
        kind = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
        return TensorInfo(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        return GraphSignature.of(map(tensor, graph.input), map(tensor, graph.output))
    except Exception as error:  # protobuf's own errors have no base that is public
        raise BadBundle(f"{path} cannot be read as ONNX ({error}); export the checkpoint again") from error


# What it needs -------------------------------------------------------------------------------------------------------


def _require_torch() -> None:
    from sdrpn.errors import MissingDependency

    try:
        import torch

        torch.inference_mode  # noqa: B018  # a folder named torch on the path imports too
        import onnx

        onnx.load  # noqa: B018
    except (ImportError, AttributeError) as error:
        missing = "onnx" if "onnx" in str(error) else "PyTorch"
        raise MissingDependency(
            f"compare runs the checkpoint in PyTorch, and {missing} is not installed; pip install 'sdrpn[train]'"
        ) from error


def _verify(bundle: Bundle, variants: Iterable[Variant]) -> None:
    """A file that was changed is told apart from a graph that was exported wrongly."""
    from sdrpn.cli.progress import progress

    names = sorted({name for variant in variants for name in variant.files})
    total_bytes = sum(bundle.manifest.files[name].size_bytes for name in names if name in bundle.manifest.files)
    done_bytes = 0
    with progress("verify") as advance:

        def more(size_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += size_bytes
            advance(done_bytes, total_bytes)

        bundle.verify(names, advance=more)


def _require_memory(bundle: Bundle, source: Checkpoint, variants: Iterable[Variant]) -> None:
    """The model in float32 and the graphs of one variant have to fit."""
    from math import prod

    from sdrpn.errors import RunFailed
    from sdrpn.machine import read_machine
    from sdrpn.sizes import text_from_bytes

    files = bundle.manifest.files
    graph_bytes = max(sum(files[name].size_bytes for name in variant.files) for variant in variants)
    model_bytes = 4 * sum(prod(source.shape(name)) for name in source.names)
    available_bytes = read_machine().memory_available_bytes
    missing_bytes = model_bytes + graph_bytes - (available_bytes or model_bytes + graph_bytes)
    if missing_bytes > 0:
        raise RunFailed(
            f"compare needs {text_from_bytes(model_bytes)} of memory for the checkpoint in float32 and "
            f"{text_from_bytes(graph_bytes)} for the graphs: {text_from_bytes(missing_bytes)} are missing; name the "
            f"smallest variant with --variant, or use a machine with more memory"
        )


def _flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested entries under dotted names."""
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


# What is printed -----------------------------------------------------------------------------------------------------


def _print_as_json(args: argparse.Namespace, checks: list[Check]) -> None:
    from sdrpn.cli.output import print_json

    print_json(
        {
            "format_version": FORMAT_VERSION,
            "bundle": args.bundle,
            "checkpoint": args.checkpoint,
            "ok": all(check.ok for check in checks),
            "checks": checks,
        }
    )


def _print_as_table(checks: list[Check]) -> None:
    """A row for each kind of check of each graph: what failed first, or else what came closest to its limit."""
    from sdrpn.cli.output import print_table, print_text

    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.variant, check.graph, check.kind), []).append(check)
    print_table(
        ("variant", "graph", "check", "result", ""), [(*key, *_summary(group)) for key, group in groups.items()]
    )
    for check in checks:
        if check.note:
            print_text(f"{_place(check)}: {check.note}")
    print_text(f"{sum(check.ok for check in checks)} of {len(checks)} checks passed")


def _summary(group: list[Check]) -> tuple[str, str]:
    failed = [check for check in group if not check.ok]
    if failed:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"FAILED {len(failed)} of {len(group)}", f"{failed[0].tensor}: {_difference(failed[0])}{others}"
    numbers = [check for check in group if isinstance(check.found, float)]
    if not numbers:
        return f"ok {len(group)}", ""
    # Differences have their worst at the top, cosines at the bottom.
    worst = (min if group[0].kind == "roi cosine" else max)(numbers, key=lambda check: check.found)
    return f"ok {len(group)}", f"{worst.tensor}: {_difference(worst)}"


def _difference(check: Check) -> str:
    if check.limit is None:
        return f"{check.found}, expected {check.expected}"
    style, bound = (".7f", "at least") if check.kind == "roi cosine" else (".1e", "at most")
    found = f"{check.found:{style}}" if isinstance(check.found, float) else check.found
    return f"{found}, {bound} {check.limit:g}"


def _place(check: Check) -> str:
    return f"{check.variant} {check.graph}, {check.kind} of {check.tensor}"
