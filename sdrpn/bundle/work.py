"""What an answer costs at least on a CPU: bytes that a decode step reads, operations of a prefill. Arithmetic alone."""

from __future__ import annotations

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import cache_row_bytes, graph_weights_bytes
from sdrpn.method.spec import ModelSpec

__all__ = ["cpu_step_bytes", "prefill_operations"]

_STEP_GRAPHS = ("trunk", "tail")
_HALF_FILES = ".fp16.bin"  # libraries convert them to fp32 on a CPU


def cpu_step_bytes(bundle: Bundle, variant: Variant, context: int) -> int:
    """Bytes that a decode step reads on a CPU: weights of trunk and tail, and keys and values of the context.

    Codes and scales count as they are stored, matrices in fp16 as the fp32 that they become.
    """
    files, spec = bundle.manifest.files, bundle.spec
    weights = sum(graph_weights_bytes(bundle, variant)[name] for name in _STEP_GRAPHS)
    weights += sum(
        files[file].size_bytes
        for name in _STEP_GRAPHS
        for file in variant.graphs[name].weights
        if file.endswith(_HALF_FILES)
    )
    row = cache_row_bytes(spec, variant.computes_in.size_bytes, variant.kv_cache)
    return weights + 2 * spec.llm.layers * context * row


def prefill_operations(spec: ModelSpec, rows: int) -> int:
    """Multiplications and additions of a plain prefill of `rows` tokens, as the graphs compute it.

    Of the last layer all rows have keys and values, and the last one alone the rest and a row of logits.
    """
    llm = spec.llm
    keys = 2 * llm.kv_heads * llm.head_dim * llm.width
    others = 2 * llm.heads * llm.head_dim * llm.width + 3 * llm.mlp_width * llm.width
    products = llm.layers * keys * rows + (llm.layers - 1) * others * rows + others + llm.vocabulary * llm.width
    pairs = (llm.layers - 1) * (rows * (rows + 1) // 2) + rows
    return 2 * products + 4 * llm.heads * llm.head_dim * pairs
