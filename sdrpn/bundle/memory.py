"""Estimate how much memory a model needs while it answers, before anything is loaded. Arithmetic on sizes only.

Used for engines and for the runtime on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.graphs import Parts
from sdrpn.errors import RunFailed
from sdrpn.families.registry import family_of
from sdrpn.host.sizes import text_from_bytes
from sdrpn.method.spec import ModelSpec
from sdrpn.method.usual_length import TEXT_TOKENS

__all__ = [
    "CPU_PREFILL_ROWS",
    "MemoryNeeds",
    "cache_row_bytes",
    "cpu_needs",
    "device_needs",
    "fitting_context",
    "graph_weights_bytes",
    "require_cpu_memory",
    "step_bytes",
    "usual_context",
]

_BYTE, _HALF, _FLOAT = 1, 2, 4
# The least that a compiler's scratch memory adds to the activations.
_SCRATCH_BYTES = 8 << 20
# The tail's engine has room for two prefills at once; scores, masked scores and softmax are there together.
_PREFILLS_AT_ONCE, _SCORE_TENSORS = 2, 3
# Activations of so many rows stay in the caches of a CPU.
CPU_PREFILL_ROWS = 256
# Interpreter, ONNX Runtime, tokenizer, and pages of files that are in memory: with the shipped model, which needs 19 MB
# beside it, an answer took 112 MB.
_PROCESS_BYTES = 95_000_000


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes for all graphs of a model, which are loaded together."""

    weights_bytes: int
    caches_bytes: int
    activations_bytes: int
    images_bytes: int  # pixels and image tokens of a picture and its crops
    attention_bytes: int = 0  # scores of a prefill, where it is not known that attention is fused
    picture_bytes: int = 0  # the picture itself, decoded: see sdrpn.images.decoded_size

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(size for _, size in self.parts)

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Its parts, as messages name them."""
        return (
            ("weights", self.weights_bytes),
            ("caches", self.caches_bytes),
            ("activations", self.activations_bytes),
            ("image buffers", self.images_bytes),
            *((("scores of attention if it is not fused", self.attention_bytes),) if self.attention_bytes else ()),
            *((("the picture", self.picture_bytes),) if self.picture_bytes else ()),
        )

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {text_from_bytes(size)}" for name, size in self.parts)
        return f"{text_from_bytes(self.total_bytes)} ({parts})"


def graph_weights_bytes(bundle: Bundle, variant: Variant) -> dict[str, int]:
    """Bytes on disk of the weights that each graph points to."""
    files = bundle.manifest.files
    return {name: sum(files[file].size_bytes for file in graph.weights) for name, graph in variant.graphs.items()}


def device_needs(
    spec: ModelSpec,
    weights_bytes: int,
    *,
    context: int,
    batch: int = 1,
    kv_cache: str | None = None,
    unfused_attention: bool = False,
    parts: Parts = "all",
) -> MemoryNeeds:
    """Engines on a GPU: the whole context at once; caches in fp16, or in 8 bits as a variant's `kv_cache` says.

    The graphs run one after the other in one block of activations: the largest counts. A row holds four copies of the
    residual stream in fp32, and the packed projections in fp16; attention over more than one row works on a copy of
    one layer's cache. The tail's engine has room for two prefills at once, with their masks: 458 MB at 2048 rows and
    949 MB at 4096 were seen in layers of 7B shapes, and this gives 479 MB and 967 MB. A row of the vision tower is
    counted in fp32, all of it.

    `parts`: "look": without the tail's caches, and of one picture; `weights_bytes` are those of what is loaded.
    `unfused_attention`: of such a prefill the scores of all heads, those with the mask and their softmax are written
    out as well, in fp16: 1.6 GB at 2048 rows; or those of the vision tower, if they are more.
    """
    llm, tower = spec.llm, family_of(spec).tower_load(spec.vision)
    row = 4 * llm.width * _FLOAT + _projections(spec) * _HALF + 2 * llm.kv_heads * llm.head_dim * _HALF
    prefill = context * (row * 3 // 2 + _features_row_bytes(spec)) + 2 * context**2 + batch * llm.vocabulary * _FLOAT
    activations = _SCRATCH_BYTES + max(prefill, tower.rows * tower.row_values * _FLOAT)
    caches = _caches_bytes(spec, context, batch, _HALF, kv_cache, parts)
    of_heads = max(_PREFILLS_AT_ONCE * llm.heads * context**2, tower.heads * tower.rows * tower.attended)
    scores = _SCORE_TENSORS * of_heads * _HALF if unfused_attention else 0
    return MemoryNeeds(weights_bytes, caches, activations, _images_bytes(spec, parts), scores)


def step_bytes(spec: ModelSpec, weights_bytes: int, context: int, kv_cache: str | None = None) -> int:
    """What a decode step of an engine reads: the weights of trunk and tail, and keys and values of a whole cache."""
    return weights_bytes + 2 * spec.llm.layers * context * cache_row_bytes(spec, _HALF, kv_cache)


def cpu_needs(
    bundle: Bundle,
    variant: Variant,
    *,
    context: int,
    batch: int = 1,
    mapped_bytes: int | None = None,
    process_bytes: int = _PROCESS_BYTES,
    prefill_rows: int | None = CPU_PREFILL_ROWS,
    row_extra_bytes: int | None = None,
    each_keeps: bool = False,
) -> MemoryNeeds:
    """ONNX Runtime on a CPU. Data that is mapped from files and not used again is not counted.

    `mapped_bytes`: size of the weights that `sdrpn optimize` saved; None: weights are packed in memory when graphs are
    loaded. Attention materialises the scores of every head; a prefill is as long as a picture, a crop and a text, and
    computed in parts of at most `prefill_rows`. `process_bytes`: of the process without a model. Caches in 8 bits are
    converted to floats layer by layer; up to three such arrays exist at once. `row_extra_bytes`: the library itself
    holds float caches of trunk and tail in 8 bits, with so many bytes beside each row of a head, and reads the codes.
    `each_keeps`: every graph keeps the activations of its longest run; otherwise graphs share them.
    """
    spec, parts = bundle.spec, variant.parts
    llm, rows = spec.llm, usual_context(spec, context, parts)
    rows = rows if prefill_rows is None else min(rows, prefill_rows)
    row = 4 * llm.width * _FLOAT + 2 * _projections(spec) * _FLOAT + llm.heads * context * _FLOAT
    row += _features_row_bytes(spec)
    # Some of the tower's graphs have fused attention on a CPU; scores of one head are counted.
    tower = family_of(spec).tower_load(spec.vision)
    vision = tower.rows * (tower.row_values + tower.attended) * _FLOAT
    element = variant.computes_in.size_bytes
    floats = 0 if variant.kv_cache is None else 3 * batch * context * llm.kv_heads * llm.head_dim * element
    prefill = rows * row + floats
    decoders = sum(1 for name in variant.graphs if name != "vision")
    activations = decoders * prefill + vision if each_keeps else max(prefill, vision)
    return MemoryNeeds(
        weights_bytes=_cpu_weights_bytes(bundle, variant) if mapped_bytes is None else mapped_bytes,
        caches_bytes=_caches_bytes(spec, context, batch, element, variant.kv_cache, parts, row_extra_bytes),
        activations_bytes=process_bytes + activations + batch * llm.vocabulary * _FLOAT,
        images_bytes=_images_bytes(spec, parts),
    )


def usual_context(spec: ModelSpec, limit: int, parts: Parts = "all") -> int:
    """Tokens of a question with one crop, and its answer; for a look, of a question alone."""
    images = 1 if parts == "look" else 2
    return min(limit, images * spec.vision.image_tokens + TEXT_TOKENS)


def fitting_context(needs_of: Callable[[int], MemoryNeeds], memory_bytes: int, limit: int) -> int:
    """The largest context up to `limit` that fits; 0 if none does."""
    fits, fails = 0, limit + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if needs_of(middle).total_bytes <= memory_bytes:
            fits = middle
        else:
            fails = middle
    return fits


def require_cpu_memory(
    bundle: Bundle,
    variant: Variant,
    available_bytes: int | None,
    needs_of: Callable[[int], MemoryNeeds] | None = None,
) -> None:
    """Raise RunFailed, with the numbers, if one question with a crop would not fit in memory.

    `needs_of`: what a context takes; None: as `cpu_needs` says of the bundle's own graphs.
    """
    context = usual_context(bundle.spec, bundle.manifest.max_context, variant.parts)
    found = cpu_needs(bundle, variant, context=context) if needs_of is None else needs_of(context)
    if available_bytes is None or found.total_bytes <= available_bytes:
        return
    missing = text_from_bytes(found.total_bytes - available_bytes)
    smaller = "" if variant.numbers.bits <= 4 else "; export in int4 for a smaller one"
    raise RunFailed(
        f"{bundle.path} as {variant.name} needs about {found} for a context of {context}, and this machine has "
        f"{text_from_bytes(available_bytes)} available: {missing} are missing{smaller}, or skip this check",
        options=("no_memory_check",),
    )


def _caches_bytes(
    spec: ModelSpec,
    context: int,
    batch: int,
    element_bytes: int,
    kv_cache: str | None,
    parts: Parts,
    row_extra_bytes: int | None = None,
) -> int:
    """Keys and values of every layer, the RPN's with its key cache of the scores, the gate's, and the taps in fp32.

    In 8 bits, which those of RPN and gate never are, every row of every head has a scale beside it.
    """
    llm = spec.llm
    rpn_caches = 0 if spec.rpn is None else 2 * (spec.rpn.layers - 1) + 1 + 2 * spec.rpn.gate_layers
    row, own_row = cache_row_bytes(spec, element_bytes, None), cache_row_bytes(spec, element_bytes, kv_cache)
    if row_extra_bytes is not None:
        own_row = llm.kv_heads * (llm.head_dim * _BYTE + row_extra_bytes)
    layers = llm.layers if parts == "all" else spec.tap_layer
    return batch * context * (2 * layers * own_row + rpn_caches * row + llm.width * _FLOAT)


def cache_row_bytes(spec: ModelSpec, element_bytes: int, kv_cache: str | None) -> int:
    """Bytes of the keys, or of the values, of one layer and row."""
    llm = spec.llm
    if kv_cache is None:
        return llm.kv_heads * llm.head_dim * element_bytes
    return llm.kv_heads * (llm.head_dim * _BYTE + element_bytes)


def _projections(spec: ModelSpec) -> int:
    """Output channels of the packed projections of a layer."""
    llm = spec.llm
    return (llm.heads + 2 * llm.kv_heads) * llm.head_dim + 2 * llm.mlp_width


def _images_bytes(spec: ModelSpec, parts: Parts) -> int:
    """A picture and, where it is cropped, its crops: inputs of the tower, image tokens and their features, in fp32."""
    family = family_of(spec)
    images = 1 if spec.rpn is None or parts == "look" else 1 + family.most_crops(spec.vision)
    tokens = spec.vision.image_tokens * spec.llm.width * (1 + family.deepstack(spec.vision))
    return images * (family.look_numbers(spec.vision) + tokens) * _FLOAT


def _features_row_bytes(spec: ModelSpec) -> int:
    """What the trunk takes for a row beside the row itself: features of the image for its first layers, in fp32."""
    return family_of(spec).deepstack(spec.vision) * spec.llm.width * _FLOAT


def _cpu_weights_bytes(bundle: Bundle, variant: Variant) -> int:
    """ONNX Runtime packs matrices into its own memory, instead of using the mapped file.

    It also keeps the original codes of quantised matrices, and converts fp16 to fp32 for a CPU.
    """
    sizes = [
        (file, bundle.manifest.files[file].size_bytes) for graph in variant.graphs.values() for file in graph.weights
    ]
    return sum(size if file.endswith(".fp32.bin") else 2 * size for file, size in sizes)
