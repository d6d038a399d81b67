"""The kernels that TensorRT chose, read from its verbose log, and the gate that checks them. Knows no TensorRT.

The listing has two forms. TensorRT-RTX lists constants between inputs and outputs. TensorRT up to 10.12 at least
(Torch-TensorRT's documentation; NVIDIA/TensorRT issue 4397) lists constants among the inputs, where only their names
identify them. Conditions about constants cannot be checked there, so such an engine neither passes nor fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType

from sdrpn.bundle.engine_manifest import NOT_JUDGED, REMARK
from sdrpn.bundle.graphs import graph_named
from sdrpn.host.sizes import text_from_bytes
from sdrpn.method.spec import ModelSpec

__all__ = [
    "Kernel",
    "KernelTensor",
    "Verdict",
    "activation_bytes",
    "gate",
    "is_told",
    "kernels_from_log",
]

# TensorRT-RTX: _gemv_mha_v1 (one row of queries, reads the cache in place), _gemm_mha_v2; TensorRT: fmha, mha, in the
# name or in the tactic.
_ATTENTION = re.compile(r"mha", re.IGNORECASE)
# The output of a cache update. TensorRT-RTX lists such a kernel as reading and writing the same tensor; for TensorRT,
# whose listing was not available, it is recognised by the node or layer.
_UPDATE_NODE = re.compile(r"TensorScatter|KV_?CacheUpdate", re.IGNORECASE)
# The names of constant types in the listing. Scales of FP4 are FP8, with five axes or more.
_LISTED_AS = {"INT4": "int4", "FP8": "fp8", "FP4": "fp4e2m1"}
_LINE = re.compile(r"Name: (?P<name>.*), LayerType: (?P<kind>\w+), (?P<rest>Inputs: \[.*)", re.DOTALL)
_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
_TENSOR = re.compile(r"\{ Name: (.*?), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\].*?Datatype: ([^,}\]]+)")
# A type within a format, as TensorRT writes it for tensors outside Myelin: "Row major linear FP16 format".
_TYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|FP4|INT8|INT4|INT32|INT64|BOOL)\b", re.IGNORECASE)
_ITEM_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "FP8": 1, "INT8": 1}
_SPELLED = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16"}
# The compiler numbers the subgraphs: one per profile where a graph compiles as a whole.
_SUBGRAPH = re.compile(r"_myl(\d+)_\d+$")


@dataclass(frozen=True)
class KernelTensor:
    """A tensor that a kernel reads or writes; -1 is a dynamic dimension."""

    name: str
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Kernel:
    """One kernel of the listing."""

    name: str
    kind: str
    subgraph: int  # in the order of the profiles
    inputs: tuple[KernelTensor, ...]
    constants: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    onnx_nodes: tuple[str, ...]
    tactic: str = ""
    lists_constants: bool = True  # False: constants are among the inputs

    @property
    def attends(self) -> bool:
        """Whether it is a fused attention kernel."""
        return any(_ATTENTION.search(text) is not None for text in (self.name, self.tactic))

    @property
    def multiplies(self) -> bool:
        """Whether it contains a matrix product. A kernel that only prepares weights has no inputs."""
        return bool(self.inputs) and any(node.rpartition("/")[2].startswith("MatMul") for node in self.onnx_nodes)

    def reads_as_it_is(self, dtype: str) -> int:
        """How many quantised weights of a type it reads directly, without unpacking them first; scales do not count."""
        listed = _LISTED_AS[dtype]
        return sum(constant.dtype.lower() == listed and len(constant.dims) <= 3 for constant in self.constants)


@dataclass(frozen=True)
class Verdict:
    """The verdict of the gate. `unjudged`: why the listing allows no check. Neither that nor a remark is a fault."""

    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    unjudged: str | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines for a manifest; empty: passed."""
        unjudged = () if self.unjudged is None else (f"{NOT_JUDGED}{self.unjudged}",)
        return (*unjudged, *self.faults, *(f"{REMARK}{remark}" for remark in self.remarks))

    @property
    def without_faults(self) -> Verdict:
        """The verdict for a listing of a form that was not tested: faults become remarks."""
        return Verdict((), (*self.faults, *self.remarks), self.unjudged)


def kernels_from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels of a build, from a verbose log with detailed profiling verbosity."""
    lines = (line for message in messages for line in message.splitlines())
    return tuple(kernel for line in lines if (kernel := _kernel(line)) is not None)


def is_told(line: str) -> bool:
    """Whether this module reads a line of the log."""
    return ", LayerType: " in line or "Total Activation Memory: " in line


def activation_bytes(messages: Iterable[str]) -> int | None:
    """The largest activation memory of any profile, from the build log; None where it is not logged."""
    found = [int(size) for text in messages for size in _ACTIVATION.findall(text)]
    return max(found, default=None)


def gate(
    kernels: Sequence[Kernel],
    spec: ModelSpec,
    graph: str,
    *,
    profiles: Sequence[str],
    max_context: int,
    cache_lengths: Mapping[str, int] = MappingProxyType({}),
    small_weights: Mapping[str, int] = MappingProxyType({}),
    coded_caches: bool = False,
    updated_caches: Set[str] = frozenset(),
    caches: Set[str] = frozenset(),
) -> Verdict:
    """Check the choice of kernels.

    Every profile must have one fused attention per layer. In the decode profile every weight in INT4, FP8 or FP4 must
    be read directly by the kernel that multiplies with it, no kernel may write a tensor as large as a cache, except
    the update of a cache, which TensorRT does in place, and attention must read the caches themselves: its name is the
    same when it reads copies. In a prefill, unpacking weights first costs little, so it is
    only a remark. The same holds for caches in 8 bits, of which TensorRT-RTX 1.7 unpacks one layer at a time to fp16.

    Args:
        profiles: names, in order of their indices; those of decode profiles begin with "decode"
        cache_lengths: profile -> rows of its caches, where that is not max_context
        small_weights: "INT4", "FP8" or "FP4" -> the number of such weights in the graph
        coded_caches: keys and values are codes with scales
        updated_caches: the graph's outputs that are caches updated in place
        caches: the graph's inputs that are caches; empty: what attention reads is not checked
    """
    if not kernels:
        return Verdict(unjudged="the library listed no kernels")
    numbers = sorted({kernel.subgraph for kernel in kernels})
    if len(numbers) != len(profiles):
        return Verdict(unjudged=f"the listing has {len(numbers)} subgraphs for {len(profiles)} profiles")
    wanted, found, remarks = graph_named(graph).attentions(spec), list[str](), list[str]()
    for number, profile in zip(numbers, profiles, strict=True):
        own = [kernel for kernel in kernels if kernel.subgraph == number]
        fused = sum(kernel.attends for kernel in own)
        if fused != wanted:
            found.append(f"profile {profile} has {fused} fused attention kernels for {wanted} layers")
        if profile.startswith("decode"):
            found += _detours(own, profile, small_weights)
            rows = cache_lengths.get(profile, max_context)
            copies = (
                *_cache_copies(own, spec, rows, updated_caches),
                *(_other_sources(own, spec, rows, caches) if caches else ()),
            )
            if not coded_caches:
                found += copies
            elif copies:
                remarks.append(f"profile {profile} unpacks the rows of {len(copies)} caches in 8 bits before attention")
            remarks += _int8_detours(own, profile)
        else:
            remarks += _detours(own, profile, small_weights)
    if not any(kernel.lists_constants for kernel in kernels):
        why = "the listing has no constants, so it does not show which weights a kernel multiplies with"
        return Verdict(tuple(found), tuple(remarks), why)
    return Verdict(tuple(found), tuple(remarks))


def _detours(kernels: Sequence[Kernel], profile: str, weights: Mapping[str, int]) -> Iterator[str]:
    if not any(kernel.lists_constants for kernel in kernels):
        return
    for dtype, count in weights.items():
        direct = sum(kernel.reads_as_it_is(dtype) for kernel in kernels if kernel.multiplies)
        if direct != count:
            finding = f"multiplies directly with {direct} of {count} {dtype} weights and unpacks the others"
            yield f"profile {profile} {finding}"


def _int8_detours(kernels: Sequence[Kernel], profile: str) -> Iterator[str]:
    """A remark, not a fault: TensorRT-RTX 1.7 always unpacks blockwise 8-bit weights."""
    constants = (constant for kernel in kernels if not kernel.multiplies for constant in kernel.constants)
    unpacked = sum(constant.dtype.lower() == "int8" for constant in constants)
    if unpacked:
        yield f"profile {profile} unpacks {unpacked} INT8 weights at every step, which moves more bytes than fp16 would"


def _cache_copies(
    kernels: Sequence[Kernel], spec: ModelSpec, max_context: int, updated_caches: Set[str]
) -> Iterator[str]:
    # A kernel that reads only constants unpacks weights, which may be larger than a cache.
    for kernel in (listed for listed in kernels if listed.inputs):
        for tensor in kernel.outputs:
            if _is_large(tensor, spec, max_context) and not _updates(kernel, tensor.name, updated_caches):
                size = text_from_bytes(_cache_bytes(tensor, spec, max_context))
                what = f"{kernel.name} writes {tensor.name} {list(tensor.dims)}, as large as a whole cache"
                yield f"{what}: {size} for each sequence at every step"


def _other_sources(kernels: Sequence[Kernel], spec: ModelSpec, max_context: int, caches: Set[str]) -> Iterator[str]:
    """What attention reads in place of the caches, and no kernel of the listing writes."""
    written = {tensor.name for kernel in kernels for tensor in kernel.outputs}  # `_cache_copies` judges these
    for kernel in (listed for listed in kernels if listed.attends):
        for tensor in kernel.inputs:
            own = tensor.name in written or any(cache in tensor.name for cache in caches)
            if _is_large(tensor, spec, max_context) and not own:
                yield f"{kernel.name} reads {tensor.name} {list(tensor.dims)}, which is none of the graph's caches"


def _is_large(tensor: KernelTensor, spec: ModelSpec, max_context: int) -> bool:
    """Whether a tensor is as large as the cache of one request."""
    entries = math.prod(abs(dim) for dim in tensor.dims)
    large = entries >= spec.llm.kv_heads * max_context * spec.llm.head_dim
    return large or _has_rows_of_a_cache(tensor.dims, spec.llm.head_dim, max_context)


def _cache_bytes(tensor: KernelTensor, spec: ModelSpec, max_context: int) -> int:
    """Bytes of a tensor; the listing hides the number of heads where the library merged it with the batch."""
    entries = math.prod(abs(dim) for dim in tensor.dims)
    if entries < spec.llm.kv_heads * max_context * spec.llm.head_dim:
        entries *= spec.llm.kv_heads
    return entries * _ITEM_BYTES.get(tensor.dtype, 2)


def _updates(kernel: Kernel, output: str, updated_caches: Set[str]) -> bool:
    """Whether it writes new rows into an existing cache, rather than a new copy of the cache."""
    if not any(cache in output for cache in updated_caches):
        return False
    in_place = any(tensor.name == output for tensor in kernel.inputs)
    return in_place or any(_UPDATE_NODE.search(node) for node in (*kernel.onnx_nodes, kernel.name, kernel.kind))


def _has_rows_of_a_cache(dims: Sequence[int], head_dim: int, max_context: int) -> bool:
    """Whether dims are (requests and heads, rows, head_dim), or transposed, where the library merged two axes.

    One new row may follow the old ones.
    """
    if len(dims) != 3 or dims[0] >= 0:
        return False
    return any(sorted(dims[1:]) == sorted((head_dim, rows)) for rows in (max_context, max_context + 1))


def _kernel(line: str) -> Kernel | None:
    found = _LINE.match(line)
    if found is None:
        return None
    before, _, after = found["rest"].partition("], Outputs: [")
    inputs, lists_constants, constants = before.partition("], Constants: [")
    outputs, _, rest = after.partition("TacticName: ")
    number = _SUBGRAPH.search(found["name"])
    return Kernel(
        name=found["name"],
        kind=found["kind"],
        subgraph=int(number.group(1)) if number else 0,
        inputs=_tensors(inputs),
        constants=_tensors(constants),
        outputs=_tensors(outputs),
        onnx_nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", rest.rpartition("Metadata:")[2])),
        tactic=rest.partition(", ")[0],
        lists_constants=bool(lists_constants),
    )


def _tensors(text: str) -> tuple[KernelTensor, ...]:
    return tuple(
        KernelTensor(name, tuple(int(dim) for dim in dims.split(",") if dim), _type_in(dtype.strip()))
        for name, dims, dtype in _TENSOR.findall(text)
    )


def _type_in(text: str) -> str:
    """The type in a description of a format."""
    found = _TYPE.search(text) if " " in text else None
    return _SPELLED.get(found.group().upper(), found.group()) if found else text.split(" ")[0]
