"""Rounding a product's inputs to nvfp4 while it runs, as one ONNX function.

TensorRT multiplies in 4 bits only after its own operator, which ONNX does not have. So the operator is a model function
of the same name here, with a body of standard operators, which every ONNX library can run. TensorRT's parser uses its
own operator and ignores the body.
"""

from __future__ import annotations

import onnx_ir as ir
import onnxscript
from onnx import parser

from sdrpn.export.float_formats import FP4_BLOCK, FP4_MAX, FP8_TINY

__all__ = ["dynamic_quantize", "dynamic_quantize_function"]

FLOAT, FP8, FP4 = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1
_DOMAIN, _NAME = "trt", "TRT_FP4DynamicQuantize"
_TEXT = f"""
<domain: "{_DOMAIN}", opset_import: ["" : OPSET]>
{_NAME} <axis, block_size, scale_type> (x, factor) => (codes, scales)
{{
    rows = Cast <to = {FLOAT.value}> (x)
    step = Cast <to = {FLOAT.value}> (factor)
    by_block = Constant <value_ints = [0, 0, -1, {FP4_BLOCK}]> ()
    blocks = Reshape (rows, by_block)
    sizes = Abs (blocks)
    last = Constant <value_ints = [3]> ()
    largest = ReduceMax <keepdims = 0> (sizes, last)
    most = Constant <value_float = {FP4_MAX}> ()
    least = Constant <value_float = {FP8_TINY}> ()
    in_steps = Div (largest, step)
    wanted = Div (in_steps, most)
    never_zero = Max (wanted, least)
    scales = Cast <to = {FP8.value}> (never_zero)
    units = DequantizeLinear (scales, step)
    codes = QuantizeLinear <axis = -1, block_size = {FP4_BLOCK}, output_dtype = {FP4.value}> (rows, units)
}}
"""


def dynamic_quantize_function(opset: int) -> ir.Function:
    """The function that defines the operator, for a model of that opset, at least 23."""
    return ir.serde.deserialize_function(parser.parse_function(_TEXT.replace("OPSET", str(opset))))


def dynamic_quantize(builder: onnxscript.GraphBuilder, x: ir.Value, factor: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x (B,S,K) -> codes (B,S,K) float4_e2m1fn and scales (B,S,K/16) float8_e4m3fn; x ~ codes * scales * factor."""
    codes = ir.Value(name="codes", type=ir.TensorType(FP4), shape=x.shape)
    scales = ir.Value(name="scales", type=ir.TensorType(FP8))
    attributes = {"axis": -1, "block_size": FP4_BLOCK, "scale_type": int(FP8)}
    builder.call_op(_NAME, [x, factor], attributes, domain=_DOMAIN, version=1, outputs=[codes, scales])
    return codes, scales
