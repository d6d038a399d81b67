"""A bundle and its engines, as tables and lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sdrpn.bundle.bundle import Bundle, GraphInfo, Manifest, Variant
from sdrpn.bundle.graphs import graphs_of
from sdrpn.families.registry import family_of
from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.text import Part, Table, Text
from sdrpn.workflows.inspection import EngineSet, TargetReport, engine_sets

__all__ = ["bundle_text", "engines_text"]

_ENGINE_COLUMNS = ("graph", "size", "library", "for", "variant", "context", "batch", "kernels", "built in")
_KERNEL_COLUMNS = ("profile", "kernel", "kind", "reads", "weights", "writes")
_NAME_LENGTH = 60  # of a kernel or tensor in the table, which keeps the end of longer names


# The bundle ----------------------------------------------------------------------------------------------------------


def bundle_text(bundle: Bundle) -> Iterator[Part]:
    """The model, and its variants with the tensors of their graphs; of a release, what can be done with it."""
    yield Table("", ("model", ""), list(_model_rows(bundle)))
    if bundle.release_targets:
        yield from _release_lines(bundle)
        return
    for variant in bundle.manifest.variants.values():
        yield _variant_table(bundle.manifest, variant)


def _model_rows(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    spec, llm = manifest.spec, manifest.spec.llm
    yield from family_of(spec).described(spec.vision)
    yield "LLM", f"{llm.layers} layers, width {llm.width}, {llm.heads} heads ({llm.kv_heads} for keys and values)"
    yield "tap", f"after layer {spec.tap_layer}: trunk {spec.tap_layer}, tail {spec.tail_layers} layers"
    if spec.rpn is None:
        yield "RPN", "none: the plain model only"
    else:
        second = ", Q-Zoom's second pass" if spec.rpn.scheme == "q-zoom" else ""
        yield "RPN", f"{spec.rpn.layers} layers, loss {spec.rpn.loss}{second}"
        if manifest.gate_about is not None:
            yield "gate", manifest.gate_about
        yield "looks again", f"at cells above {manifest.own_policy.about}"
    yield "context", f"{manifest.max_context} of {llm.max_context} positions"
    yield "vocabulary", f"{llm.vocabulary} tokens, tokenizer {manifest.tokenizer or 'none: token ids only'}"
    yield "prompt", spec.prompt.template if "{" not in spec.prompt.template else "chat template"
    yield "from", f"{manifest.source.get('checkpoint')} ({manifest.source.get('layout')})"
    engines = [f"{own.target} ({', '.join(own.engines)})" for own in engine_sets(bundle)]
    yield "engines for", "; ".join(engines) or "none"
    yield "written by", ", ".join(f"{name} {number}" for name, number in sorted(manifest.tools.items()))


def _release_lines(bundle: Bundle) -> Text:
    return (
        f"a release: engines for {', '.join(bundle.release_targets)}, the token embedding and the tokenizer, without "
        "the ONNX graphs that the engines were built from",
        f"  which GPU each fits, and whether this one:  sdrpn inspect {bundle.path} --engines",
        f'  on such a GPU:                              sdrpn ask {bundle.path} IMAGE "QUESTION"',
        "build, optimize, verify, compare and answers on a CPU take the whole bundle that it was made from",
    )


def _variant_table(manifest: Manifest, variant: Variant) -> Table:
    rows = [row for graph in graphs_of(manifest.spec) for row in _graph_rows(manifest, variant.graphs[graph.name])]
    size_bytes = sum(manifest.files[name].size_bytes for name in variant.files)
    title = f"{variant.name}: opset {variant.opset}, {text_from_bytes(size_bytes)} with the token embedding"
    return Table(title, ("graph", "size", "", "tensor", "type", "dims"), rows)


def _graph_rows(manifest: Manifest, graph: GraphInfo) -> Iterator[tuple[str, ...]]:
    """One row per tensor; the caches, which are alike in all layers, share a row."""
    head = graph.name, text_from_bytes(_size(manifest, graph))
    for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        caches = [tensor for tensor in tensors if tensor.is_cache]
        others = [tensor for tensor in tensors if not tensor.is_cache]
        for tensor in (*others, *caches[:1]):
            more = f" and {len(caches) - 1} more" if tensor in caches and len(caches) > 1 else ""
            yield (*head, side, f"{tensor.name}{more}", tensor.dtype, f"({', '.join(map(str, tensor.dims))})")
            head = "", ""


def _size(manifest: Manifest, graph: GraphInfo) -> int:
    return sum(manifest.files[name].size_bytes for name in (graph.file, *graph.weights))


# Its engines ---------------------------------------------------------------------------------------------------------


def engines_text(report: Sequence[TargetReport]) -> Iterator[Part]:
    """A table per target, a line per problem and, where they were read, a table of kernels per graph."""
    for target in report:
        yield Table(target.engines.target, _ENGINE_COLUMNS, list(_engine_rows(target.engines)))
        for graph, known in target.engines.manifests.items():
            for line in (*(() if target.layers else known.kernel_gate), *known.build_notes):
                yield f"{graph}: {line}"
        yield from map(str, target.problems)
        if not target.problems:
            yield "fits this machine"
        for graph, kernels in target.layers.items():
            manifest = target.engines.engines[graph].manifest
            profiles = _profiles_of(kernels, manifest.profiles if manifest is not None else ())
            rows = [(profile, *_kernel_row(kernel)) for profile, kernel in zip(profiles, kernels, strict=True)]
            yield Table(_kernels_title(graph, profiles, kernels), _KERNEL_COLUMNS, rows)
            yield from (manifest.kernel_gate if manifest is not None else ()) or ("gate: passed",)


def _engine_rows(engines: EngineSet) -> Iterator[tuple[str, ...]]:
    for graph, manifest in engines.manifests.items():
        yield (
            graph,
            text_from_bytes(manifest.engine.size_bytes),
            f"{manifest.flavour} {manifest.library_version}",
            " ".join(manifest.compute_capabilities),
            manifest.variant,
            " ".join(map(str, manifest.contexts)),
            str(manifest.max_batch),
            manifest.kernels_text,
            f"{manifest.build_s:.1f} s",
        )


def _profiles_of(kernels: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """The profile of every kernel; "part 0" if the listing is not divided by profile."""
    numbers = sorted({kernel.get("subgraph", 0) for kernel in kernels})
    known = dict(zip(numbers, names, strict=True)) if len(numbers) == len(names) else {}
    return [known.get(number, f"part {number}") for number in (kernel.get("subgraph", 0) for kernel in kernels)]


def _kernels_title(graph: str, profiles: Sequence[str], kernels: Sequence[dict[str, Any]]) -> str:
    """How many kernels of which kind each profile has."""
    parts = []
    for profile in dict.fromkeys(profiles):
        own = [
            str(kernel.get("kind", "kernel"))
            for owner, kernel in zip(profiles, kernels, strict=True)
            if owner == profile
        ]
        parts.append(f"{profile} {', '.join(f'{count} {kind}' for kind, count in Counter(own).most_common())}")
    return f"{graph}: {'; '.join(parts)}"


def _kernel_row(kernel: dict[str, Any]) -> tuple[str, ...]:
    reads, writes = (
        ", ".join(f"{_short(tensor['name'])} {_type_and_shape(tensor)}" for tensor in kernel.get(side, ()))
        for side in ("inputs", "outputs")
    )
    # The library numbers constants; names of scalars and vectors carry no information.
    weights = ", ".join(
        _type_and_shape(constant) for constant in kernel.get("constants", ()) if len(constant["dims"]) > 1
    )
    return _short(kernel["name"]), str(kernel.get("kind", "")), reads, weights, writes


def _type_and_shape(tensor: dict[str, Any]) -> str:
    return f"{tensor.get('dtype', '')} {tensor['dims']}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
