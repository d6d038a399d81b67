"""What the graphs of a bundle must take and give, derived from the model alone.

Written without a look at the export on purpose: this is what its graphs are checked against. Dims are those of the
manifest: a string is a dynamic dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sdrpn.bundle.cache_names import scale_cache_name
from sdrpn.bundle.manifest import TensorInfo
from sdrpn.bundle.numerics import PRECISIONS, cache_form
from sdrpn.errors import BadInput
from sdrpn.host.json_reader import shown
from sdrpn.method.spec import ModelSpec

__all__ = ["GraphSignature", "cache_output_name", "expected_signatures"]

Dims = tuple[int | str, ...]

# Dialect -> (suffix of a cache's output, its length): all of the cache, or its new rows alone.
_CACHE_OUTPUTS = {"fused": ("_out", "cache_length"), "primitive": ("_rows", "sequence")}


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of one graph, by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    @classmethod
    def of(cls, inputs: Iterable[TensorInfo], outputs: Iterable[TensorInfo]) -> GraphSignature:
        """From lists as a manifest has them."""
        return cls({tensor.name: tensor for tensor in inputs}, {tensor.name: tensor for tensor in outputs})

    @property
    def size(self) -> int:
        """How many tensors it has."""
        return len(self.inputs) + len(self.outputs)

    def difference(self, expected: GraphSignature) -> str | None:
        """The first thing that is not as expected, in words; None where nothing is."""
        for side, found, wanted in (
            ("input", self.inputs, expected.inputs),
            ("output", self.outputs, expected.outputs),
        ):
            for name in [*found, *wanted]:
                if name not in wanted or name not in found:
                    return f"{side} {shown(name)} is {'unknown' if name in found else 'missing'}"
            for name, tensor in found.items():
                if tensor != wanted[name]:
                    other = wanted[name]
                    return f"{side} {name} is {tensor.dtype} {tensor.dims}; expected {other.dtype} {other.dims}"
        return None


def expected_signatures(
    spec: ModelSpec, dialect: str, precision: str, *, for_cpu: bool = False, kv_cache: str | None = None
) -> dict[str, GraphSignature]:
    """Vision, trunk, RPN (where the model has one) and tail. Raises BadInput for an unknown dialect or precision.

    `for_cpu`: of the two forms of a quantised variant, the one that computes in fp32. `kv_cache`: how trunk and tail
    keep keys and values, as a variant says it.
    """
    if dialect not in _CACHE_OUTPUTS or precision not in PRECISIONS:
        raise BadInput(
            f"a {dialect}-{precision} variant is unknown; expected {' or '.join(_CACHE_OUTPUTS)}, "
            f"in {' or '.join(PRECISIONS)}"
        )
    form, computes = cache_form(kv_cache), PRECISIONS[precision].computes_in(for_cpu=for_cpu)
    graphs = _Graphs(spec, dialect, computes.name, None if form is None else form.dtype)
    signatures = {"vision": graphs.vision(), "trunk": graphs.trunk()}
    if spec.rpn is not None:
        signatures["rpn"] = graphs.rpn(spec.rpn.layers)
    return signatures | {"tail": graphs.tail()}


def cache_output_name(dialect: str, cache: str) -> str:
    """The output that belongs to a cache input."""
    return cache + _CACHE_OUTPUTS[dialect][0]


@dataclass(frozen=True)
class _Graphs:
    spec: ModelSpec
    dialect: str
    cache_dtype: str
    code_dtype: str | None  # of keys and values in 8 bits, whose scales are in `cache_dtype`

    def vision(self) -> GraphSignature:
        vision = self.spec.vision
        pixels = _float("pixel_values", "images", 3, vision.image_size_px, vision.image_size_px)
        return GraphSignature.of([pixels], [_float("image_embeds", "images", vision.image_tokens, self.spec.llm.width)])

    def trunk(self) -> GraphSignature:
        caches = self._layer_caches(range(self.spec.tap_layer), self.code_dtype)
        return self._decoder("inputs_embeds", caches, [self._hidden("tap")], last_index=False)

    def tail(self) -> GraphSignature:
        caches = self._layer_caches(range(self.spec.tap_layer, self.spec.llm.layers), self.code_dtype)
        return self._decoder("tap", caches, [_float("logits", "batch", self.spec.llm.vocabulary)], last_index=True)

    def rpn(self, layers: int) -> GraphSignature:
        """The last layer's keys, which are not rotated, are cached under a name of their own."""
        scores = [_float("scores", "batch", self.spec.llm.heads, "cache_length")]
        if self.dialect == "primitive":  # its cache is read only: the new rows are scored apart
            scores.append(_float("new_scores", "batch", self.spec.llm.heads, "sequence"))
        score_keys = TensorInfo("score_key_cache", self.cache_dtype, self._cache_dims(self.spec.llm.head_dim))
        caches = [*self._layer_caches(range(layers - 1), None), score_keys]
        return self._decoder("tap", caches, scores, last_index=True)

    def _decoder(
        self, hidden: str, caches: list[TensorInfo], results: list[TensorInfo], *, last_index: bool
    ) -> GraphSignature:
        indices = [_int("position_ids", "batch", "sequence"), _int("write_index", "batch")]
        if last_index:
            indices.append(_int("last_index", "batch"))
        length = _CACHE_OUTPUTS[self.dialect][1]
        cache_outputs = [
            TensorInfo(cache_output_name(self.dialect, one.name), one.dtype, (*one.dims[:2], length, one.dims[3]))
            for one in caches
        ]
        return GraphSignature.of([self._hidden(hidden), *indices, *caches], [*results, *cache_outputs])

    def _hidden(self, name: str) -> TensorInfo:
        return _float(name, "batch", "sequence", self.spec.llm.width)

    def _layer_caches(self, layers: range, code_dtype: str | None) -> list[TensorInfo]:
        """Keys and values of every layer; in 8 bits with a scale for each row and head beside them."""
        names = [f"{part}_cache.{layer}" for layer in layers for part in ("key", "value")]
        dims = self._cache_dims(self.spec.llm.head_dim)
        if code_dtype is None:
            return [TensorInfo(name, self.cache_dtype, dims) for name in names]
        scales = [TensorInfo(scale_cache_name(name), self.cache_dtype, self._cache_dims(1)) for name in names]
        return [*(TensorInfo(name, code_dtype, dims) for name in names), *scales]

    def _cache_dims(self, width: int) -> Dims:
        return "batch", self.spec.llm.kv_heads, "cache_length", width


def _float(name: str, *dims: int | str) -> TensorInfo:
    return TensorInfo(name, "float32", dims)


def _int(name: str, *dims: int | str) -> TensorInfo:
    return TensorInfo(name, "int64", dims)
