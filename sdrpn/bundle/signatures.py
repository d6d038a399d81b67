"""The inputs and outputs that the graphs of a bundle must have, derived from the model alone.

Independent of the export on purpose: its graphs are checked against this. Dims are as in the manifest: a string is a
dynamic dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sdrpn.bundle.graphs import RoleName, graphs_of
from sdrpn.bundle.manifest import TensorInfo
from sdrpn.bundle.numerics import PRECISIONS, cache_form
from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.host.json_reader import shown
from sdrpn.method.gate import MAP_STATISTICS
from sdrpn.method.spec import ModelSpec

__all__ = ["GraphSignature", "expected_signatures"]

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class _CacheOutput:
    """The cache output of a dialect: the whole cache, or only its new rows."""

    suffix: str
    length: str
    roles: dict[str, RoleName]  # by the role of the input


_CACHE_OUTPUTS = {
    "fused": _CacheOutput("_out", "cache_length", {"cache": "cache", "cache_scale": "cache_scale"}),
    "primitive": _CacheOutput("_rows", "sequence", {"cache": "new_rows", "cache_scale": "new_scales"}),
}


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of one graph, by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    @classmethod
    def of(cls, inputs: Iterable[TensorInfo], outputs: Iterable[TensorInfo]) -> GraphSignature:
        """From a manifest's lists of inputs and outputs."""
        return cls({tensor.name: tensor for tensor in inputs}, {tensor.name: tensor for tensor in outputs})

    @property
    def size(self) -> int:
        """The number of tensors."""
        return len(self.inputs) + len(self.outputs)

    @property
    def caches(self) -> dict[str, TensorInfo]:
        """Cache inputs, those of scales included."""
        return {name: tensor for name, tensor in self.inputs.items() if tensor.is_cache}

    @property
    def cache_outputs(self) -> dict[str, TensorInfo]:
        """Cache outputs, by the input that each belongs to."""
        return {tensor.of: tensor for tensor in self.outputs.values() if tensor.is_cache}

    @property
    def scales(self) -> dict[str, str]:
        """Names of codes -> names of their scales, for inputs and outputs."""
        inputs = {tensor.of: tensor.name for tensor in self.inputs.values() if tensor.role == "cache_scale"}
        outputs = self.cache_outputs
        return inputs | {outputs[codes].name: outputs[scale].name for codes, scale in inputs.items()}

    def difference(self, expected: GraphSignature) -> str | None:
        """The first difference from what is expected, in words; None if there is none."""
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
                    if (tensor.dtype, tensor.dims) == (other.dtype, other.dims):
                        if tensor.role != other.role:
                            return f"{side} {name} has the role {shown(tensor.role)}; expected {other.role}"
                        owner = other.of or "no other"
                        return f"{side} {name} is the {other.role} of {shown(tensor.of)}; expected that of {owner}"
                    return f"{side} {name} is {tensor.dtype} {tensor.dims}; expected {other.dtype} {other.dims}"
        return None


def expected_signatures(
    spec: ModelSpec, dialect: str, precision: str, *, for_cpu: bool = False, kv_cache: str | None = None
) -> dict[str, GraphSignature]:
    """Every graph of the model. Raises BadInput for an unknown dialect or precision.

    `for_cpu`: the form of a quantised variant that computes in fp32. `kv_cache`: form of the KV cache of trunk and
    tail, as in a variant.
    """
    if dialect not in _CACHE_OUTPUTS or precision not in PRECISIONS:
        raise BadInput(
            f"a {dialect}-{precision} variant is unknown; expected {' or '.join(_CACHE_OUTPUTS)}, "
            f"in {' or '.join(PRECISIONS)}"
        )
    form, computes = cache_form(kv_cache), PRECISIONS[precision].computes_in(for_cpu=for_cpu)
    graphs = _Graphs(spec, dialect, computes.name, None if form is None else form.dtype)
    makers = {
        "vision": graphs.vision,
        "trunk": graphs.trunk,
        "gate": graphs.gate,
        "rpn": graphs.rpn,
        "tail": graphs.tail,
    }
    return {graph.name: makers[graph.name]() for graph in graphs_of(spec)}


@dataclass(frozen=True)
class _Graphs:
    spec: ModelSpec
    dialect: str
    cache_dtype: str
    code_dtype: str | None  # of a KV cache in 8 bits, whose scales are in `cache_dtype`

    def vision(self) -> GraphSignature:
        """The family's inputs and outputs: the tokens of each look, and what else the tower says of them."""
        family = family_of(self.spec)
        inputs = [
            TensorInfo(tensor.name, tensor.dtype, tensor.dims, tensor.role)
            for tensor in family.vision_inputs(self.spec)
        ]
        outputs = [
            TensorInfo(tensor.name, tensor.dtype, tensor.dims, tensor.role)
            for tensor in family.vision_outputs(self.spec)
        ]
        return GraphSignature.of(inputs, outputs)

    def trunk(self) -> GraphSignature:
        caches = self._layer_caches(range(self.spec.tap_layer), self.code_dtype)
        features = [
            self._hidden(f"deepstack.{number}", "deepstack")
            for number in range(family_of(self.spec).deepstack(self.spec.vision))
        ]
        values = [self._hidden("inputs_embeds", "hidden"), *features]
        return self._decoder(values, caches, [self._tap], last_index=False)

    def tail(self) -> GraphSignature:
        caches = self._layer_caches(range(self.spec.tap_layer, self.spec.llm.layers), self.code_dtype)
        logits = _float("logits", "logits", "batch", self.spec.llm.vocabulary)
        return self._decoder([self._tap], caches, [logits], last_index=True)

    def gate(self) -> GraphSignature:
        assert self.spec.rpn is not None
        logit = _float("gate_logit", "gate_logit", "batch", 1)
        if self.spec.rpn.gate_probe:
            statistics = _float("map_statistics", "map_statistics", "batch", len(MAP_STATISTICS))
            return GraphSignature.of([self._tap, statistics, _index("last_index", "batch")], [logit])
        caches = self._layer_caches(range(self.spec.rpn.gate_layers), None)
        return self._decoder([self._tap], caches, [logit], last_index=True)

    def rpn(self) -> GraphSignature:
        """The last layer's keys have a cache with its own name."""
        assert self.spec.rpn is not None
        rpn, llm, values = self.spec.rpn, self.spec.llm, [self._tap]
        results = self._against_rows("scores", "new_scores", llm.heads)
        if rpn.sink_query:
            dims: Dims = ("batch", 1, 1, llm.head_dim)
            values.append(_float("first_query", "first_query", *dims))
            results += [_float("first_query_out", "first_query", *dims)]
            results += self._against_rows("sink_logits", "new_sink_logits")
        if rpn.prune_above:
            results += self._against_rows("seen", "new_seen")
        score_keys = TensorInfo("score_key_cache", self.cache_dtype, self._cache_dims(llm.head_dim), "cache")
        caches = [*self._layer_caches(range(rpn.layers - 1), None), score_keys]
        return self._decoder(values, caches, results, last_index=True)

    def _against_rows(self, cached: RoleName, new: RoleName, *heads: int) -> list[TensorInfo]:
        """A result for every row of the cache; where that is read only, a separate one for the new rows."""
        found = [_float(cached, cached, "batch", *heads, "cache_length")]
        return [*found, _float(new, new, "batch", *heads, "sequence")] if self.dialect == "primitive" else found

    def _decoder(
        self, values: list[TensorInfo], caches: list[TensorInfo], results: list[TensorInfo], *, last_index: bool
    ) -> GraphSignature:
        indices = [_index("row_index", "batch", "sequence"), _index("write_index", "batch")]
        heads = () if self.dialect == "fused" else (1,)  # the operator applies one table to all heads
        table: Dims = ("batch", *heads, "sequence", self.spec.llm.head_dim // 2)
        indices += [TensorInfo("rope_cos", self.cache_dtype, table, "rope_cos")]
        indices += [TensorInfo("rope_sin", self.cache_dtype, table, "rope_sin")]
        if last_index:
            indices.append(_index("last_index", "batch"))
        form = _CACHE_OUTPUTS[self.dialect]
        cache_outputs = [
            TensorInfo(
                f"{cache.name}{form.suffix}",
                cache.dtype,
                (*cache.dims[:2], form.length, cache.dims[3]),
                form.roles[cache.role],
                cache.name,
            )
            for cache in caches
        ]
        return GraphSignature.of([*values, *indices, *caches], [*results, *cache_outputs])

    @property
    def _tap(self) -> TensorInfo:
        return self._hidden("tap", "tap")

    def _hidden(self, name: str, role: RoleName) -> TensorInfo:
        return _float(name, role, "batch", "sequence", self.spec.llm.width)

    def _layer_caches(self, layers: range, code_dtype: str | None) -> list[TensorInfo]:
        """Keys and values of every layer; in 8 bits also a scale per row and head."""
        parts = [(part, layer) for layer in layers for part in ("key", "value")]
        dims, dtype = self._cache_dims(self.spec.llm.head_dim), code_dtype or self.cache_dtype
        caches = [TensorInfo(f"{part}_cache.{layer}", dtype, dims, "cache") for part, layer in parts]
        if code_dtype is None:
            return caches
        names = [f"{part}_scale_cache.{layer}" for part, layer in parts]
        scales = [
            TensorInfo(name, self.cache_dtype, self._cache_dims(1), "cache_scale", codes.name)
            for name, codes in zip(names, caches, strict=True)
        ]
        return [*caches, *scales]

    def _cache_dims(self, width: int) -> Dims:
        return "batch", self.spec.llm.kv_heads, "cache_length", width


def _float(name: str, role: RoleName, *dims: int | str) -> TensorInfo:
    return TensorInfo(name, "float32", dims, role)


def _index(name: RoleName, *dims: int | str) -> TensorInfo:
    """An index tensor, named after its role."""
    return TensorInfo(name, "int64", dims, name)
