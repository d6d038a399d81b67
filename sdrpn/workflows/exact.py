"""Compare a bundle with its checkpoint exactly: graph by graph, then whole answers, with the model in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.errors import BadBundle
from sdrpn.workflows.comparison import GraphRuns, Steps, answers_of, compare_source, questions_of

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, Variant
    from sdrpn.bundle.signatures import GraphSignature
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.compare.answers import TrialQuestion
    from sdrpn.compare.graphs import Check
    from sdrpn.host.progress import ShowProgress
    from sdrpn.model import SdRpnModel

__all__ = ["exact_checks"]


def exact_checks(
    bundle: Bundle, source: Checkpoint, variants: Sequence[Variant], threads: int | None, progress: ShowProgress
) -> Iterator[Check]:
    """Names, axes, shapes and values of every graph, in that order; then whole answers: RoI map, boxes and tokens."""
    from sdrpn.model import model_from_checkpoint

    questions = questions_of(bundle, source)
    steps_each = len(bundle.variant().graphs) + 1 + len(questions)  # 1: the embedding table
    total = 2 + len(variants) * steps_each
    with progress("verify", "steps") as advance:
        advance(1, total)
        yield from compare_source(bundle, source)
        advance(2, total)
        model = model_from_checkpoint(source)
        for index, variant in enumerate(variants):
            steps = Steps(advance, 2 + index * steps_each, total)
            yield from _compare_variant(bundle, variant, model, questions, steps, threads)


def _compare_variant(
    bundle: Bundle,
    variant: Variant,
    model: SdRpnModel,
    questions: tuple[TrialQuestion, ...],
    steps: Steps,
    threads: int | None,
) -> Iterator[Check]:
    from sdrpn.compare.answers import compare_answers
    from sdrpn.compare.graphs import compare_embedding, compare_graphs, compare_rotary
    from sdrpn.compare.simulation import runnable_bundle
    from sdrpn.runtime.embedding import TokenEmbedding
    from sdrpn.runtime.session import Session

    llm = bundle.spec.llm
    files = {name: _signature_from_file(bundle.file(graph.file)) for name, graph in variant.graphs.items()}
    with runnable_bundle(bundle, variant) as runs:
        with GraphRuns(runs, variant.name, steps, threads) as graphs:
            context = bundle.manifest.max_context
            checks = list(compare_graphs(model, variant, graphs.run, max_context=context, files=files))
        yield from checks
        if any(not check.ok and check.kind in ("names", "axes", "shapes") for check in checks):
            return  # without working graphs there are no answers
        steps.take()
        embedding = bundle.file(variant.embedding)
        with TokenEmbedding(embedding, llm.vocabulary, llm.width, variant.embedding_dtype) as table:
            yield from compare_embedding(model, variant, table.rows)
        yield from compare_rotary(model, variant, bundle.manifest.rotary)
        with Session.open(runs.path, variant=variant.name, threads=threads, verify=False) as session:
            answer = answers_of(session, steps)
            yield from compare_answers(model, questions, answer, variant=variant.name, precision=variant.numerics)


def _signature_from_file(path: Path) -> GraphSignature:
    """What an ONNX file itself declares. Raises BadBundle if it is not an ONNX file."""
    import onnx

    from sdrpn.bundle.bundle import TensorInfo
    from sdrpn.bundle.signatures import GraphSignature

    def tensor(value: onnx.ValueInfoProto) -> TensorInfo:
        kind = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
        return TensorInfo(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        return GraphSignature.of(map(tensor, graph.input), map(tensor, graph.output))
    except Exception as error:  # protobuf's errors have no public base class
        raise BadBundle(f"{path} cannot be read as ONNX ({error}); export the checkpoint again") from error
