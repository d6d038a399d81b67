"""Tables of precisions, number types and forms of the KV cache.

Every stage uses these tables. Each library's types are looked up by these names in one module:
`bundle/number_types.py` for NumPy, `model/dtypes.py` for PyTorch, `export/weights.py` for ONNX; TensorRT's names
are here, since two stages need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdrpn.errors import BadInput
from sdrpn.host.suggestion import unknown_choice

__all__ = [
    "CACHE_FORMS",
    "CPU_SUFFIX",
    "DIALECT_NAMES",
    "NUMBER_TYPES",
    "PRECISIONS",
    "TENSORRT_TYPES",
    "CacheForm",
    "DialectName",
    "NumberType",
    "Precision",
    "PrecisionName",
    "WeightForm",
    "cache_form",
    "precision_named",
]

DialectName = Literal["fused", "primitive"]
DIALECT_NAMES: tuple[DialectName, ...] = ("fused", "primitive")
PrecisionName = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4", "nvfp4"]
# How the matrices of the LLM are stored: in the type of the computation, or as codes with scales.
WeightForm = Literal["dense", "integers", "fp8", "nvfp4"]
# Suffix of the form of a variant that computes in fp32, where there are two forms.
CPU_SUFFIX = "-cpu"


@dataclass(frozen=True)
class NumberType:
    """A type of tensors in graphs and engines."""

    name: str  # NumPy's name, or ml_dtypes' for types that NumPy lacks
    size_bytes: int
    tensorrt: str  # as TensorRT's DataType spells it
    largest: float | None = None  # finite number of a floating-point type
    storage: str = ""  # the NumPy type that holds its bytes; empty: the type itself

    @property
    def held_as(self) -> str:
        """The NumPy type that holds it: bytes for types that NumPy lacks."""
        return self.storage or self.name

    @property
    def has_range_of_float32(self) -> bool:
        """Whether it has the range of float32; else values must stay below `largest`."""
        return self.largest is not None and self.largest > 1e38


_NUMBER_TYPES = (
    NumberType("float32", 4, "FLOAT", 3.4028234663852886e38),
    NumberType("float16", 2, "HALF", 65504.0),
    NumberType("bfloat16", 2, "BF16", 3.3895313892515355e38, "uint16"),
    NumberType("float8_e4m3fn", 1, "FP8", 448.0, "uint8"),
    NumberType("int64", 8, "INT64"),
    NumberType("int32", 4, "INT32"),
    NumberType("int8", 1, "INT8"),
    NumberType("uint8", 1, "UINT8"),
    NumberType("bool", 1, "BOOL"),
)
NUMBER_TYPES: Mapping[str, NumberType] = {row.name: row for row in _NUMBER_TYPES}
TENSORRT_TYPES: Mapping[str, str] = {row.tensorrt: row.name for row in _NUMBER_TYPES}


@dataclass(frozen=True)
class Precision:
    """A precision of a model, by its name in options, manifests and files."""

    name: PrecisionName
    weights: WeightForm
    bits: int  # per entry of a matrix
    computes: str  # the type of activations, caches and unquantised parts
    about: str  # description in the command line's help
    # Whether a second form of each variant, for CPUs, computes in fp32 on the same weights.
    cpu_form: bool = False
    onnxruntime: bool = True  # whether ONNX Runtime has CPU kernels for these graphs
    dialects: tuple[DialectName, ...] = DIALECT_NAMES
    # The lowest compute capability with kernels for it; None: engines are not built in it.
    least_capability: int | None = None
    calibration: Literal["none", "optional", "required"] = "none"  # to round inputs as well
    smaller: str = ""  # advice for a full disk: a smaller precision

    @property
    def is_quantized(self) -> bool:
        """Whether matrices are stored in less than 16 bits."""
        return self.weights != "dense"

    @property
    def dense(self) -> PrecisionName:
        """The precision of tensors that are neither quantised nor always fp32."""
        return next(row.name for row in PRECISIONS.values() if not row.is_quantized and row.computes == self.computes)

    @property
    def forms(self) -> Mapping[str, str]:
        """Suffix of a variant's name -> the type that its graphs compute in; the form for CPUs first."""
        own = {"": self.computes}
        return {CPU_SUFFIX: "float32", **own} if self.cpu_form else own

    def computes_in(self, *, for_cpu: bool) -> NumberType:
        """The type of activations and caches, in one of two forms or the only one."""
        return NUMBER_TYPES["float32" if for_cpu else self.computes]


# Most accurate first. Capabilities: SM75 refuses INT4 (TensorRT-RTX 1.7 says so; INT8 weights were not tried there);
# BF16 from Ampere, FP8 from Ada, FP4 from Blackwell on (support matrices of TensorRT and TensorRT-RTX).
_PRECISIONS = (
    Precision("fp32", "dense", 32, "float32", "exact", smaller="fp16 needs half of it"),
    Precision(
        "fp16",
        "dense",
        16,
        "float16",
        "half the size",
        least_capability=0,
        smaller="int4 needs about two fifths of it",
    ),
    Precision("bf16", "dense", 16, "bfloat16", "for engines only", onnxruntime=False, least_capability=80),
    Precision(
        "int8",
        "integers",
        8,
        "float16",
        "integers in blocks; two variants on the same weights, one for GPUs and one for CPUs",
        cpu_form=True,
        least_capability=80,
    ),
    Precision(
        "fp8", "fp8", 8, "float16", "E4M3, for engines on Ada and later", least_capability=89, calibration="optional"
    ),
    Precision("int4", "integers", 4, "float16", "as int8, in 4 bits", cpu_form=True, least_capability=80),
    Precision(
        "nvfp4",
        "nvfp4",
        4,
        "float16",
        "for engines on Blackwell only",
        onnxruntime=False,
        dialects=("fused",),  # the other dialect's opset has no such type
        least_capability=100,
        calibration="required",
    ),
)
PRECISIONS: Mapping[str, Precision] = {row.name: row for row in _PRECISIONS}


@dataclass(frozen=True)
class CacheForm:
    """A KV cache in 8 bits: a row of a head is codes times a scale."""

    name: str
    dtype: str  # of the codes
    largest: float  # code
    dialects: tuple[DialectName, ...] = DIALECT_NAMES
    least_capability: int = 0


_CACHE_FORMS = (
    CacheForm("int8", "int8", 127.0),
    # Neither ONNX Runtime nor TensorRT updates caches of this type in place.
    CacheForm("fp8", "float8_e4m3fn", 448.0, ("primitive",), 89),
)
CACHE_FORMS: Mapping[str, CacheForm] = {row.name: row for row in _CACHE_FORMS}


def precision_named(name: str) -> Precision:
    """Raises BadInput for an unknown one."""
    if name not in PRECISIONS:
        raise BadInput(f"precision {unknown_choice(name, PRECISIONS)}")
    return PRECISIONS[name]


def cache_form(name: str | None) -> CacheForm | None:
    """The form by its name; None: caches in the type that the graph computes in. Raises BadInput for an unknown
    name."""
    if name is None:
        return None
    if name not in CACHE_FORMS:
        raise BadInput(f"caches in {name!r} are unknown; expected one of {', '.join(CACHE_FORMS)}, or none")
    return CACHE_FORMS[name]
