"""Export options, checked independently of checkpoints and graphs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from sdrpn.bundle.bundle import Variant
from sdrpn.bundle.cache_codes import RowCodes, row_codes
from sdrpn.bundle.numerics import DIALECT_NAMES, DialectName, Precision, PrecisionName, cache_form, precision_named
from sdrpn.errors import BadInput
from sdrpn.export.float_formats import Float4, Float8
from sdrpn.export.quantization import Blocks, Method
from sdrpn.export.quantized_weights import Form
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.suggestion import unknown_choice

__all__ = ["DEFAULT_KEEP", "KEEPABLE", "ExportOptions"]

KEEPABLE = ("lm_head", "rpn", "vision")  # and layers.N
# The RoI map decides the crops, and the head the tokens: both are sensitive to rounding.
DEFAULT_KEEP = KEEPABLE


@dataclass(frozen=True)
class ExportOptions(CheckedFields):
    """What to export.

    Args:
        max_context: None: the checkpoint's own limit
        block, method: for int8 and int4: inputs that share a scale, and how codes are chosen
        keep: for precisions below fp16: parts that stay in fp16 (of KEEPABLE, or "layers.N" for a layer of the LLM)
        int8: for int4: parts, by the same names, that get 8 bits; they are not kept by default
        kv_cache: form of the KV cache of trunk and tail: "int8" or "fp8"; None: the type that they compute in
        calibration: for gptq, nvfp4, and fp8 with rounded inputs: a digest of the calibration
    """

    precision: PrecisionName = "fp32"
    dialect: DialectName = "fused"
    max_context: int | None = None
    block: int = 32
    method: Method = "rtn"
    keep: tuple[str, ...] = DEFAULT_KEEP
    int8: tuple[str, ...] = ()
    kv_cache: str | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        precision_named(self.precision)
        if self.dialect not in DIALECT_NAMES:
            raise BadInput(f"dialect {unknown_choice(self.dialect, DIALECT_NAMES)}")
        _require_parts(self.keep, "to keep in fp16")
        _require_parts(self.int8, "to give 8 bits")
        self._check_int8()
        caches = cache_form(self.kv_cache)
        if caches is not None and self.dialect not in caches.dialects:
            raise BadInput(
                f"caches in {caches.name} are not supported by the dialect {self.dialect}: ONNX Runtime and TensorRT "
                f"cannot update them in place; use int8, or the dialect {' or '.join(caches.dialects)}"
            )
        if self.is_quantized:
            self.form("trunk")  # refuses an invalid block or method
        if self.kv_cache is not None and "primitive" not in self.numbers.dialects:
            raise BadInput(
                f"caches in {self.kv_cache} do not go with precision {self.precision}: engines have them in the "
                "dialect primitive alone, whose opset has no such type; use precision fp8, or other caches"
            )
        if self.dialect not in self.numbers.dialects:
            raise BadInput(
                f"precision {self.precision} is not supported by the dialect {self.dialect}, whose opset has no such "
                f"type; use {' or '.join(self.numbers.dialects)}"
            )
        self._check_calibration()

    def _check_int8(self) -> None:
        if self.int8 and self.precision != "int4":
            raise BadInput(f"8 bits for {', '.join(self.int8)} are for precision int4; got {self.precision}")
        both = [name for name in self.int8 if name in self.keep]
        if both and self.keep != DEFAULT_KEEP:
            raise BadInput(f"{both[0]} is listed both to keep in fp16 and to store in 8 bits; list it once")

    def _check_calibration(self) -> None:
        if self.method == "gptq" and self.precision != "int4":
            raise BadInput(f"method gptq is for int4, where rounding matters; got {self.precision}: use rtn")
        if self.method == "gptq" and self.calibration is None:
            raise BadInput("method gptq needs a calibration: name questions and images to calibrate on")
        if self.numbers.calibration == "required" and self.calibration is None:
            raise BadInput(
                f"precision {self.precision} needs a calibration, since GPUs multiply in 4 bits only if inputs are "
                "rounded too; name questions and images to calibrate on, or use int4"
            )
        if self.calibration is not None and self.method != "gptq" and self.numbers.calibration == "none":
            raise BadInput("a calibration is for the method gptq and for precisions fp8 and nvfp4; leave it out")

    @property
    def numbers(self) -> Precision:
        """The entry of the precision."""
        return precision_named(self.precision)

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix is stored in less than 16 bits."""
        return self.numbers.is_quantized

    @property
    def cache_codes(self) -> RowCodes | None:
        """The form of the KV cache. The RPN's caches are never in 8 bits: its map chooses the crops."""
        return row_codes(self.kv_cache)

    @property
    def kept(self) -> tuple[str, ...]:
        """The parts that stay in fp16."""
        return tuple(name for name in self.keep if name not in self.int8)

    @property
    def variants(self) -> dict[str, str]:
        """Variant name -> the type that its graphs compute in: for integers fp16 for GPUs and fp32 for CPUs."""
        name = f"{self.dialect}-{self.precision}"
        if self.kv_cache is not None:
            name += f"-kv-{self.kv_cache}"
        return {f"{name}{end}": computes for end, computes in self.numbers.forms.items()}

    @property
    def dense(self) -> PrecisionName:
        """The precision of tensors that are neither quantised nor always fp32."""
        return self.numbers.dense

    @classmethod
    def of_variant(cls, variant: Variant, block: int | None = None) -> ExportOptions:
        """The options that a variant in 4 or 8 bits was exported with, or others with blocks of another size."""
        how = variant.quantization or {}
        return cls(
            cast(PrecisionName, variant.precision),
            cast(DialectName, variant.dialect),
            block=how["block"] if block is None else block,
            method=how["method"],
            keep=tuple(how["keep"]),
            int8=tuple(how.get("int8", ())),
            kv_cache=variant.kv_cache,
            calibration=how.get("calibration"),
        )

    @property
    def variant(self) -> str:
        """The variant that suits a CPU."""
        return next(iter(self.variants))

    def form(self, part: str) -> Form | None:
        """How the matrices of a part are quantised: "trunk", "lm_head", "rpn", "vision" or "layers.N". None: not
        quantised.

        The vision tower never gets fewer than 8 bits: all later results depend on it, and it is small.
        """
        if not self.is_quantized or part in self.kept:
            return None
        if self.numbers.weights != "integers":
            return Float8() if self.numbers.weights == "fp8" or part == "vision" else Float4()
        bits: Literal[4, 8] = 8 if self.numbers.bits == 8 or part == "vision" or part in self.int8 else 4
        if self.method == "gptq":
            return Blocks(bits, self.block) if bits == 8 else Blocks(bits, self.block, "gptq", self.calibration or "")
        return Blocks(bits, self.block, self.method)

    def quantization(self) -> dict[str, Any] | None:
        """The entry of the manifest."""
        if not self.is_quantized:
            return None
        if self.numbers.weights != "integers":
            inputs = {} if self.calibration is None else {"inputs": self.precision, "calibration": self.calibration}
            return {"format": self.precision, "keep": sorted(self.kept), **inputs}
        return {
            "bits": self.numbers.bits,
            "block": self.block,
            "method": self.method,
            "keep": sorted(self.kept),
            **({"int8": sorted(self.int8)} if self.int8 else {}),
            **({} if self.calibration is None else {"calibration": self.calibration}),
        }


def _require_parts(names: tuple[str, ...], purpose: str) -> None:
    unknown = [name for name in names if name not in KEEPABLE and not re.fullmatch(r"layers\.\d+", name)]
    if unknown:
        expected = ", ".join((*KEEPABLE, "layers.N"))
        raise BadInput(f"{unknown[0]!r} is not a part {purpose}; expected {expected} or none")
