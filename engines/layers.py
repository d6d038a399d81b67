"""The kernels that TensorRT chose, read from its verbose log, and what must hold of them. Knows no TensorRT."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sdrpn.engine_manifest import NOT_JUDGED, REMARK
from sdrpn.spec import ModelSpec

__all__ = [
    "Kernel",
    "KernelTensor",
    "Verdict",
    "activation_bytes",
    "attention_layers",
    "gate",
    "kernels_from_log",
]

# TensorRT-RTX: _gemv_mha_v1 (one row of queries, reads the cache in place), _gemm_mha_v2; TensorRT: fmha, mha.
_ATTENTION = re.compile(r"mha", re.IGNORECASE)
_LINE = re.compile(r"Name: (?P<name>.*), LayerType: (?P<kind>\w+), (?P<rest>Inputs: \[.*)", re.DOTALL)
_TENSOR = re.compile(r"\{ Name: (.*?), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
# The compiler numbers the subgraphs, one a profile where a graph compiles as a whole.
_SUBGRAPH = re.compile(r"_myl(\d+)_\d+$")


@dataclass(frozen=True)
class KernelTensor:
    """What a kernel reads or writes; -1 is a dynamic dimension."""

    name: str
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Kernel:
    """One kernel."""

    name: str
    kind: str
    subgraph: int  # those of a lower number belong to a lower profile
    inputs: tuple[KernelTensor, ...]
    constants: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    onnx_nodes: tuple[str, ...]

    @property
    def attends(self) -> bool:
        """Whether it is a fused attention."""
        return _ATTENTION.search(self.name) is not None

    @property
    def multiplies(self) -> bool:
        """Whether a product of matrices is in it."""
        return any(node.rpartition("/")[2].startswith("MatMul") for node in self.onnx_nodes)

    @property
    def int4_constants(self) -> int:
        """Weights in 4 bits that it reads as they are."""
        return sum(constant.dtype.lower() == "int4" for constant in self.constants)


@dataclass(frozen=True)
class Verdict:
    """Of the gate. `unjudged`: why the listing does not say. Neither that nor a remark is a fault."""

    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    unjudged: str | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """As a manifest keeps it; nothing: passed."""
        if self.unjudged is not None:
            return (f"{NOT_JUDGED}{self.unjudged}",)
        return (*self.faults, *(f"{REMARK}{remark}" for remark in self.remarks))


def kernels_from_log(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """The listing that a build ends with when the log is verbose and the profiling verbosity detailed."""
    lines = (line for message in messages for line in message.splitlines())
    return tuple(kernel for line in lines if (kernel := _kernel(line)) is not None)


def activation_bytes(messages: Iterable[str]) -> int | None:
    """The most that any profile needs, as TensorRT says while it builds; None if it does not."""
    found = [int(size) for text in messages for size in re.findall(r"Total Activation Memory: (\d+) bytes", text)]
    return max(found, default=None)


def attention_layers(spec: ModelSpec, graph: str) -> int:
    """How many attentions a graph has. The RPN's last layer only scores: it attends to nothing."""
    layers = {"vision": spec.vision.used_layers, "trunk": spec.tap_layer, "tail": spec.tail_layers}
    return layers[graph] if graph in layers else (spec.rpn.layers - 1 if spec.rpn is not None else 0)


def gate(
    kernels: Sequence[Kernel],
    spec: ModelSpec,
    graph: str,
    *,
    profiles: Sequence[str],
    max_context: int,
    int4_weights: int = 0,
) -> Verdict:
    """What is wrong with the choice of kernels.

    In every profile one fused attention a layer. In the decode profile every INT4 weight goes as it is into the kernel
    that multiplies with it, and no kernel writes a tensor as large as a cache, except the update of a cache, which
    TensorRT does in place. A prefill does so much with a weight that unpacking it first is worth a remark and no more.
    So is a copy with the new row behind the old ones for the attention of one layer, as in the dialect `primitive`.

    Args:
        int4_weights: how many the graph has
    """
    if not kernels:
        return Verdict(unjudged="the library listed no kernels")
    numbers = sorted({kernel.subgraph for kernel in kernels})
    if len(numbers) != len(profiles):
        return Verdict(unjudged=f"the listing has {len(numbers)} subgraphs for {len(profiles)} profiles")
    wanted, found, remarks = attention_layers(spec, graph), list[str](), list[str]()
    for number, profile in zip(numbers, profiles, strict=True):
        own = [kernel for kernel in kernels if kernel.subgraph == number]
        fused = sum(kernel.attends for kernel in own)
        if fused != wanted:
            found.append(f"profile {profile} has {fused} fused attention kernels for {wanted} layers")
        if profile == "decode":
            found += [*_int4_detours(own, profile, int4_weights), *_cache_copies(own, spec, max_context)]
            remarks += _joined_caches(own, spec, profile, max_context)
        else:
            remarks += _int4_detours(own, profile, int4_weights)
    return Verdict(tuple(found), tuple(remarks))


def _int4_detours(kernels: Sequence[Kernel], profile: str, weights: int) -> Iterator[str]:
    direct = sum(kernel.int4_constants for kernel in kernels if kernel.multiplies)
    if direct != weights:
        yield f"profile {profile} multiplies with {direct} of {weights} INT4 weights as they are and unpacks the others"


def _cache_copies(kernels: Sequence[Kernel], spec: ModelSpec, max_context: int) -> Iterator[str]:
    size = spec.llm.kv_heads * max_context * spec.llm.head_dim  # of one request
    for kernel in kernels:
        for tensor in kernel.outputs:
            entries = math.prod(abs(dim) for dim in tensor.dims)
            if entries >= size and not re.search(r"_cache(\.\d+)?_out", tensor.name):
                yield f"{kernel.name} writes {tensor.name} {list(tensor.dims)}, as large as a whole cache"


def _joined_caches(kernels: Sequence[Kernel], spec: ModelSpec, profile: str, max_context: int) -> Iterator[str]:
    """Caches that are written out with a row behind them: (heads of all requests, rows, head_dim), or turned round."""
    row = [spec.llm.head_dim, max_context + 1]
    written = (tensor.dims for kernel in kernels for tensor in kernel.outputs if len(tensor.dims) == 3)
    count = sum(sorted(dims[1:]) == sorted(row) for dims in written)
    if count:
        yield f"profile {profile} copies {count} caches, one layer at a time, before it attends to them"


def _kernel(line: str) -> Kernel | None:
    found = _LINE.match(line)
    if found is None:
        return None
    inputs, _, after = found["rest"].partition("], Constants: [")
    constants = after.partition("], Outputs: [")[0]
    outputs = after.rpartition("Outputs: [")[2].partition("], TacticName:")[0]
    number = _SUBGRAPH.search(found["name"])
    return Kernel(
        name=found["name"],
        kind=found["kind"],
        subgraph=int(number.group(1)) if number else 0,
        inputs=_tensors(inputs),
        constants=_tensors(constants),
        outputs=_tensors(outputs),
        onnx_nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", after.rpartition("Metadata:")[2])),
    )


def _tensors(text: str) -> tuple[KernelTensor, ...]:
    return tuple(
        KernelTensor(name, tuple(int(dim) for dim in dims.split(",") if dim), dtype)
        for name, dims, dtype in _TENSOR.findall(text)
    )
