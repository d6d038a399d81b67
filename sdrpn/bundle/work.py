"""What an answer costs at least on a CPU: weights that a step reads, operations of a prefill. Arithmetic alone."""

from __future__ import annotations

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.method.spec import ModelSpec

__all__ = ["STEP_GRAPHS", "cpu_weights_read", "prefill_operations"]

STEP_GRAPHS = ("trunk", "tail")  # that a decode step runs
_HALF, _HALF_FILES = 2, ".fp16.bin"  # libraries convert them to fp32 on a CPU
_SCALE_FILES = ".scale.bin"  # of quantised matrices, in fp16


def cpu_weights_read(bundle: Bundle, variant: Variant, scale_bytes: int) -> dict[str, int]:
    """Graph -> bytes of weights that one run of it reads on a CPU, for the graphs of a decode step that are there.

    Codes count as they are stored, matrices in fp16 as the fp32 that they become.

    Args: scale_bytes: what kernels read for the scale of a block of codes
    """
    files = bundle.manifest.files

    def read(file: str) -> int:
        size = files[file].size_bytes
        if file.endswith(_SCALE_FILES):
            return size // _HALF * scale_bytes
        return 2 * size if file.endswith(_HALF_FILES) else size

    return {
        name: sum(read(file) for file in variant.graphs[name].weights) for name in STEP_GRAPHS if name in variant.graphs
    }


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
