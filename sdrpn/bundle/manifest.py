"""The manifest of a bundle, `manifest.json`, checked: types, names, limits, consistency. Opens no file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdrpn.bundle.graphs import ROLES, Parts
from sdrpn.bundle.numerics import CPU_SUFFIX, NUMBER_TYPES, NumberType, Precision, cache_form, precision_named
from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of, spec_from_json
from sdrpn.host.json_reader import read_dataclass, shown
from sdrpn.host.listed_files import FileInfo
from sdrpn.method.policy import ModelPolicy, policy_from_json
from sdrpn.method.rope import RotaryFrequencies
from sdrpn.method.spec import ModelSpec

__all__ = ["FORMAT_VERSION", "GraphInfo", "Manifest", "TensorInfo", "Variant"]

# 2: every tensor has a role; graphs take row indices and rotary tables instead of positions
FORMAT_VERSION = 2
MOST_DIM = 2**31
# Names of variants and graphs, which become names of folders and files.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Types of the token embedding: the host reads rows with NumPy, which has no bf16.
EMBEDDING_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph; a string in `dims` is a dynamic dimension.

    role: one of ROLES; empty if unknown, as in an ONNX file
    of: the cache input that this output or these scales belong to; else empty
    """

    name: str
    dtype: str  # one of NUMBER_TYPES
    dims: tuple[int | str, ...]
    role: str = ""
    of: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in NUMBER_TYPES:
            expected = ", ".join(NUMBER_TYPES)
            raise BadInput(f"dtype of {shown(self.name)} is {shown(self.dtype)}; expected one of {expected}")
        if self.role and self.role not in ROLES:
            expected = ", ".join(ROLES)
            raise BadInput(f"role of {shown(self.name)} is {shown(self.role)}; expected one of {expected}")
        for dim in self.dims:
            if isinstance(dim, int) and not 0 < dim < MOST_DIM:
                raise BadInput(f"dims of {shown(self.name)} have {dim}; expected names, or 1 to {MOST_DIM - 1}")

    @property
    def storage(self) -> str:
        """The NumPy type that holds it: bytes for types that NumPy lacks."""
        return NUMBER_TYPES[self.dtype].held_as

    @property
    def is_cache(self) -> bool:
        """Whether it is a cache that is kept between runs, or is written into one."""
        return bool(self.role) and ROLES[self.role].kind == "cache"


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX graph and the files that hold its weights."""

    name: str
    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    weights: tuple[str, ...]

    def __post_init__(self) -> None:
        # ONNX Runtime would read a file with another ending as its own format.
        if not self.file.endswith(".onnx"):
            raise BadInput(f"file is {shown(self.file)}; expected a name that ends in .onnx")


@dataclass(frozen=True)
class Variant:
    """One form of the model: a dialect in a precision."""

    name: str
    dialect: str
    precision: str
    opset: int
    graphs: Mapping[str, GraphInfo]
    embedding: str  # file of the token embedding table, (V, D)
    embedding_dtype: str
    # For int8 and int4: bits, block, method, keep; for fp8 and nvfp4: format, keep.
    quantization: Mapping[str, Any] | None = None
    kv_cache: str | None = (
        None  # form of the KV cache of trunk and tail: int8 or fp8; None: the type that they compute in
    )

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInput(f"name is {shown(self.name)}; expected small letters, digits, dots and dashes")
        if not 1 <= self.opset <= 1000:
            raise BadInput(f"opset is {self.opset}; expected 1 to 1000")
        if self.embedding_dtype not in EMBEDDING_DTYPES:
            expected = " or ".join(EMBEDDING_DTYPES)
            raise BadInput(f"embedding_dtype is {shown(self.embedding_dtype)}; expected {expected}")
        precision_named(self.precision)
        cache_form(self.kv_cache)
        for name, graph in self.graphs.items():
            if graph.name != name:
                raise BadInput(f"graphs.{name}.name is {shown(graph.name)}; expected {name}")

    @property
    def numerics(self) -> str:
        """Everything that decides how far results are from float32, as `tolerances_of` takes it."""
        return self.precision if self.kv_cache is None else f"{self.precision}-kv-{self.kv_cache}"

    @property
    def for_cpu(self) -> bool:
        """Whether this is the form of a quantised variant that computes in fp32."""
        return self.name.endswith(CPU_SUFFIX)

    @property
    def numbers(self) -> Precision:
        """The entry of its precision."""
        return precision_named(self.precision)

    @property
    def computes_in(self) -> NumberType:
        """The type of activations and caches."""
        return self.numbers.computes_in(for_cpu=self.for_cpu)

    @property
    def computes_in_half(self) -> bool:
        """Whether activations and caches have 16 bits: fp16, or bf16, which unlike fp16 has the range of fp32."""
        return self.computes_in.size_bytes == 2

    @property
    def for_engines_only(self) -> bool:
        """Whether only engines, and not ONNX Runtime, can answer with it."""
        return not self.numbers.onnxruntime

    @property
    def parts(self) -> Parts:
        """What its graphs are enough for."""
        return "all" if "tail" in self.graphs else "look"

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that this variant needs."""
        own = {self.embedding}
        for graph in self.graphs.values():
            own.update((graph.file, *graph.weights))
        return tuple(sorted(own))

    def with_graphs(self, names: Iterable[str]) -> Variant:
        """The same with these of its graphs alone."""
        wanted = set(names)
        return dataclasses.replace(self, graphs={name: g for name, g in self.graphs.items() if name in wanted})


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    spec: ModelSpec
    max_context: int
    variants: Mapping[str, Variant]
    files: Mapping[str, FileInfo]
    tokenizer: str | None
    source: Mapping[str, Any]  # the checkpoint: path, layout, sha256
    tools: Mapping[str, str]  # library -> version at export
    rotary: RotaryFrequencies  # from which the host makes the rotary tables of decoder graphs
    policy: ModelPolicy | None = None  # by what the model looks again; None: it has no RPN, or an older export
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.max_context <= self.spec.llm.max_context:
            raise BadInput(
                f"max_context is {self.max_context}; expected 1 to {self.spec.llm.max_context}, the model's",
                options=("max_context",),
            )
        pairs, found = self.spec.llm.head_dim // 2, len(self.rotary.inverse)
        if found != pairs:
            raise BadInput(f"rotary.inverse has {found} numbers; expected {pairs}, one per pair of channels of a head")

    @property
    def own_policy(self) -> ModelPolicy:
        """By what the model looks again unless something else is asked for; without one of its own, its family's."""
        return self.policy or ModelPolicy(family_of(self.spec).policy(self.spec), "official")

    @property
    def gate_threshold(self) -> float | None:
        """The score below which its gate ends with the first look, its own or its family's; None without a gate."""
        if self.spec.rpn is None or not self.spec.rpn.has_gate:
            return None
        own = self.own_policy.roi.gate_threshold
        return family_of(self.spec).policy(self.spec).gate_threshold if own is None else own

    @property
    def gate_about(self) -> str | None:
        """What its gate is, and when that ends with the first look, for people; None without a gate."""
        rpn, threshold = self.spec.rpn, self.gate_threshold
        if rpn is None or threshold is None:
            return None
        layers = f"{rpn.gate_layers} layer{'' if rpn.gate_layers == 1 else 's'}"
        kind = "a probe of the tap and the map" if rpn.gate_probe else layers
        return f"{kind}; a score below {threshold:g} ends with the first look"

    @property
    def given_template(self) -> str | None:
        """The prompt template, if `sdrpn export --template` gave one instead of the checkpoint's."""
        return self.spec.prompt.template if self.source.get("template") == "given" else None

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        policy = None if self.policy is None else self.policy.to_json()
        return {**_plain(self), "spec": self.spec.to_json(), "policy": policy}

    def to_text(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """The inverse of `to_json`. Raises BadInput with the place of an entry that is missing, unknown or of another
        type."""
        return read_dataclass(cls, value, readers={ModelSpec: spec_from_json, ModelPolicy: policy_from_json})


def _plain(value: object) -> Any:
    """Dataclasses, mappings and tuples as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
