"""The vision graphs of Qwen2.5-VL and Qwen3-VL: the patches of one picture to image tokens, for every size of picture.

Patches stay in the order in which the merger joins them. Windows are computed as windows: what an attention reads is
gathered into batches of one window each, and gathered back behind it, so that nothing is N x N but in the layers that
look everywhere. These have no mask at all.

N patches, W windows of K slots, C width of the tower, d channels of a head, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.export.decoder import FLOAT, INT64, cast
from sdrpn.export.dialects import AttentionShape, Dialect, Rotary
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable, matmul, norm, plain
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, qwen_vision_of
from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec

__all__ = ["AUTHOR", "QwenAuthor", "vision_graph", "vision_weights"]

_MLP_MULTIPLE = 128  # the largest block
_FP16_NEVER, _NEVER = -1e4, -1e30  # added where a patch is not seen: nothing that a softmax sees is below
Array = npt.NDArray[np.generic]


# Weights ------------------------------------------------------------------------------------------------------------


def vision_weights(spec: ModelSpec) -> list[Weight]:
    """Tower and mergers."""
    vision = qwen_vision_of(spec)
    layers = [_layer_25, _layer_3][isinstance(vision, Qwen3Vision)]
    return [
        # Never quantised: it is small, and every number of a picture goes through it.
        Weight("vision.patch.weight", (vision.patch_numbers, vision.width), "plain", ("vision.patch.weight",), _folded),
        *_table_weights(vision),
        *(weight for index in range(vision.layers) for weight in layers(spec, f"vision.layers.{index}")),
        *_merger(spec, "vision.merger", vision.width),
        *(
            weight
            for number in range(_deepstack_count(vision))
            for weight in _merger(spec, f"vision.deepstack.{number}", vision.merged_width)
        ),
    ]


def _folded(arrays: Sequence[Array]) -> Array:
    """(C,3,frames,P,P) -> [3*P*P,C]: a still picture is the same in every frame, so that the kernel adds up."""
    (kernel,) = arrays
    summed: Array = kernel.astype(np.float32).sum(axis=2)
    return summed.reshape(len(summed), -1).T


def _table_weights(vision: Qwen25Vision | Qwen3Vision) -> list[Weight]:
    if isinstance(vision, Qwen25Vision):
        return []
    return [
        plain("vision.patch.bias", ["vision.patch.bias"], (vision.width,)),
        plain("vision.positions", ["vision.positions"], (vision.position_side**2, vision.width)),
    ]


def _padded_mlp(vision: Qwen25Vision | Qwen3Vision) -> int:
    """The MLP's width with zeros behind it. Blocks that share a scale divide neither 3420 nor 4304."""
    return -(-vision.mlp_width // _MLP_MULTIPLE) * _MLP_MULTIPLE


def _layer_25(spec: ModelSpec, prefix: str) -> list[Weight]:
    vision, mlp = qwen_vision_of(spec), _padded_mlp(qwen_vision_of(spec))
    return [
        norm(f"{prefix}.norm1.weight", f"{prefix}.norm1.weight", (vision.width,)),
        *_attention(vision, prefix),
        norm(f"{prefix}.norm2.weight", f"{prefix}.norm2.weight", (vision.width,)),
        *_linear(f"{prefix}.mlp.gate_up", [f"{prefix}.mlp.gate", f"{prefix}.mlp.up"], vision.width, mlp),
        *_linear(f"{prefix}.mlp.down", [f"{prefix}.mlp.down"], mlp, vision.width),
    ]


def _layer_3(spec: ModelSpec, prefix: str) -> list[Weight]:
    vision = qwen_vision_of(spec)
    return [
        *_norm_pair(f"{prefix}.norm1", vision.width),
        *_attention(vision, prefix),
        *_norm_pair(f"{prefix}.norm2", vision.width),
        *_linear(f"{prefix}.mlp.fc1", [f"{prefix}.mlp.fc1"], vision.width, _padded_mlp(vision)),
        *_linear(f"{prefix}.mlp.fc2", [f"{prefix}.mlp.fc2"], _padded_mlp(vision), vision.width),
    ]


def _attention(vision: Qwen25Vision | Qwen3Vision, prefix: str) -> list[Weight]:
    qkv, out = f"{prefix}.attention.qkv", f"{prefix}.attention.out"
    return [*_linear(qkv, [qkv], vision.width, 3 * vision.width), *_linear(out, [out], vision.width, vision.width)]


def _merger(spec: ModelSpec, prefix: str, norm_width: int) -> list[Weight]:
    vision, merged = qwen_vision_of(spec), qwen_vision_of(spec).merged_width
    rms = isinstance(vision, Qwen25Vision)
    scale = [norm(f"{prefix}.norm.weight", f"{prefix}.norm.weight", (norm_width,))]
    return [
        *(scale if rms else _norm_pair(f"{prefix}.norm", norm_width)),
        *_linear(f"{prefix}.fc1", [f"{prefix}.fc1"], merged, merged),
        *_linear(f"{prefix}.fc2", [f"{prefix}.fc2"], merged, spec.llm.width),
    ]


def _norm_pair(name: str, width: int) -> list[Weight]:
    return [norm(f"{name}.{part}", f"{name}.{part}", (width,)) for part in ("weight", "bias")]


def _linear(name: str, sources: list[str], inputs: int, outputs: int) -> list[Weight]:
    """Matrices (outputs, inputs) and their biases, packed; smaller ones get zeros up to that."""
    packed = len(sources) * outputs
    weights, biases = ([f"{source}.{part}" for source in sources] for part in ("weight", "bias"))
    return [
        matmul(f"{name}.weight", weights, inputs, packed, (outputs, inputs)),
        plain(f"{name}.bias", biases, (packed,), (outputs,)),
    ]


def _deepstack_count(vision: Qwen25Vision | Qwen3Vision) -> int:
    return len(vision.deepstack_layers) if isinstance(vision, Qwen3Vision) else 0


# Graphs -------------------------------------------------------------------------------------------------------------


def vision_graph(spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
    """pixel_values (N,3*P*P) and what `tower_inputs.py` makes of the size -> image_embeds (1,N/merge^2,D) fp32.

    Qwen3-VL gives deepstack.0, ... of the same shape as well.
    """
    vision = qwen_vision_of(spec)
    g = GraphAuthor("vision", dialect.opset, table)
    author = _TowerAuthor(g, dialect, spec, dtype)
    x = author.embed()
    outputs: list[ir.Value] = []
    for index in range(vision.layers):
        x = author.layer(x, index)
        if isinstance(vision, Qwen3Vision) and index in vision.deepstack_layers:
            outputs.append(author.merge(x, f"vision.deepstack.{len(outputs)}", norm_each_patch=False))
    found = [author.merge(x, "vision.merger", norm_each_patch=True), *outputs]
    for declared, value in zip(family_of(spec).vision_outputs(spec), found, strict=True):
        rows = g.op.Unsqueeze(cast(g, value, FLOAT), g.constant([0], INT64))
        g.output(rows, Declared(declared.name, FLOAT, declared.dims, declared.role))
    return g


@dataclass(frozen=True)
class _Windows:
    """What the layers that look within windows share."""

    rows: ir.Value  # (W,K)
    slots: ir.Value  # (N,)
    rotary: Rotary  # of every slot
    mask: ir.Value


class _TowerAuthor:
    """Writes the layers of either tower; residual stream and norms in fp32, products in `dtype`."""

    def __init__(self, g: GraphAuthor, dialect: Dialect, spec: ModelSpec, dtype: ir.DataType) -> None:
        self.g, self.dialect, self.dtype, self.spec = g, dialect, dtype, qwen_vision_of(spec)
        self.shape = AttentionShape(self.spec.heads, self.spec.heads, self.spec.head_dim, dtype)
        self.pixels = g.input(Declared("pixel_values", FLOAT, ("patches", self.spec.patch_numbers), "pixels"))
        tables = [
            g.input(Declared(name, FLOAT, ("patches", self.spec.head_dim // 2), "look"))
            for name in ("rope_cos", "rope_sin")
        ]
        cos, sin = (cast(g, table, dtype) for table in tables)
        self.rotary = Rotary(*(self._batched(g.op.Unsqueeze(each, g.constant([0], INT64))) for each in (cos, sin)))
        self.windows = self._windows(cos, sin) if isinstance(self.spec, Qwen25Vision) else None

    def embed(self) -> ir.Value:
        """(N,C): every patch through one matrix; Qwen3-VL adds its part of the table of positions."""
        g, op = self.g, self.g.op
        x = g.product(cast(g, self.pixels, self.dtype), "vision.patch.weight", self.dtype, "patches")
        if isinstance(self.spec, Qwen25Vision):
            return cast(g, x, FLOAT)
        rows = g.input(Declared("position_rows", INT64, (4, "patches"), "look"))
        weights = g.input(Declared("position_weights", FLOAT, (4, "patches"), "look"))
        corners = op.Gather(g.weight("vision.positions", FLOAT), rows, axis=0)  # (4,N,C)
        weighted = op.Mul(corners, op.Unsqueeze(weights, g.constant([2], INT64)))
        positions = op.ReduceSum(weighted, g.constant([0], INT64), keepdims=0)
        return op.Add(cast(g, op.Add(x, g.weight("vision.patch.bias", self.dtype)), FLOAT), positions)

    def layer(self, x: ir.Value, index: int) -> ir.Value:
        """Attention and MLP, each behind its norm and added to x (N,C)."""
        g, op, prefix = self.g, self.g.op, f"vision.layers.{index}"
        with g.scope(prefix):
            qkv = self._linear(self._norm(x, f"{prefix}.norm1"), f"{prefix}.attention.qkv")
            attended = self._linear(self._attended(qkv, index), f"{prefix}.attention.out")
            x = op.Add(x, cast(g, attended, FLOAT))
            inner = self._mlp(self._norm(x, f"{prefix}.norm2"), f"{prefix}.mlp")
            return op.Add(x, cast(g, inner, FLOAT), _outputs=["hidden"])

    def merge(self, x: ir.Value, prefix: str, *, norm_each_patch: bool) -> ir.Value:
        """(N,C) -> (N/merge^2,D)."""
        g, op = self.g, self.g.op
        side_by_side = g.constant([-1, self.spec.merged_width], INT64)
        with g.scope(prefix):
            if norm_each_patch:
                merged = op.Reshape(self._norm(x, f"{prefix}.norm"), side_by_side)
            else:
                merged = self._norm(op.Reshape(x, side_by_side), f"{prefix}.norm")
            return self._linear(op.Gelu(self._linear(merged, f"{prefix}.fc1")), f"{prefix}.fc2")

    def _windows(self, cos: ir.Value, sin: ir.Value) -> _Windows:
        g, op, spec = self.g, self.g.op, self.spec
        assert isinstance(spec, Qwen25Vision)
        slots = (spec.window_cells * spec.merge) ** 2
        rows = g.input(Declared("window_rows", INT64, ("windows", slots), "look"))
        valid = g.input(Declared("window_valid", ir.DataType.BOOL, ("windows", slots), "look"))
        patch_slot = g.input(Declared("patch_slot", INT64, ("patches",), "look"))
        rotary = Rotary(*(self._batched(op.Gather(each, rows, axis=0)) for each in (cos, sin)))
        seen = op.Unsqueeze(valid, g.constant([1, 2], INT64))  # (W,1,1,K)
        if self.dialect.attends_with_one_row:  # an Attention of its own: it adds a mask for less than it selects by one
            never = _FP16_NEVER if self.dtype == ir.DataType.FLOAT16 else _NEVER
            seen = op.Where(seen, g.constant(0.0, self.dtype), g.constant(never, self.dtype))
            # ONNX Runtime does not broadcast a mask over queries.
            seen = op.Expand(seen, g.constant([1, 1, slots, 1], INT64), _outputs=["window_mask"])
        return _Windows(rows, patch_slot, rotary, seen)

    def _attended(self, qkv: ir.Value, index: int) -> ir.Value:
        """(N,3*C) -> (N,C)."""
        g, op, spec = self.g, self.g.op, self.spec
        rows = g.constant([-1, spec.width], INT64)
        if self.windows is None or (isinstance(spec, Qwen25Vision) and index in spec.full_layers):
            everywhere = op.Unsqueeze(qkv, g.constant([0], INT64))
            return op.Reshape(self._attention(everywhere, self.rotary, None), rows)
        within = op.Gather(qkv, self.windows.rows, axis=0, _outputs=["windows"])  # (W,K,3*C)
        y = op.Reshape(self._attention(within, self.windows.rotary, self.windows.mask), rows)
        return op.Gather(y, self.windows.slots, axis=0)

    def _attention(self, qkv: ir.Value, rotary: Rotary, mask: ir.Value | None) -> ir.Value:
        """(B,S,3*C) -> (B,S,C), each batch for itself."""
        g, op, heads, width = self.g, self.g.op, self.shape.heads, self.spec.width
        turning, value = g.split(qkv, ["turning", "value"], [2 * width, width])
        turned = self.dialect.rotate(g, self._heads(turning, 2 * heads), rotary)  # queries and keys as one
        query, key = g.split(turned, ["query", "key"], [heads, heads], axis=1)
        y = self.dialect.attend(g, query, key, self._heads(value, heads), mask, self.shape)
        return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), g.constant([0, 0, width], INT64))

    def _heads(self, x: ir.Value, heads: int) -> ir.Value:
        """(B,S,heads*d) -> (B,heads,S,d)."""
        shape = self.g.constant([0, 0, heads, self.shape.head_dim], INT64)
        return self.g.op.Transpose(self.g.op.Reshape(x, shape), perm=[0, 2, 1, 3])

    def _batched(self, table: ir.Value) -> ir.Value:
        """(B,S,d/2) with the axes that the dialect's tables have."""
        if len(self.dialect.table_axes) == 2:
            return table
        return self.g.op.Unsqueeze(table, self.g.constant([1], INT64))

    def _mlp(self, x: ir.Value, prefix: str) -> ir.Value:
        g, op = self.g, self.g.op
        if isinstance(self.spec, Qwen3Vision):
            return self._linear(op.Gelu(self._linear(x, f"{prefix}.fc1"), approximate="tanh"), f"{prefix}.fc2")
        gate, up = g.split(self._linear(x, f"{prefix}.gate_up"), ["gate", "up"])
        return self._linear(op.Mul(op.Mul(gate, op.Sigmoid(gate)), up), f"{prefix}.down")

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        """In fp32."""
        weight, eps = self.g.weight(f"{name}.weight"), self.spec.norm_eps
        if isinstance(self.spec, Qwen25Vision):
            return self.dialect.rms_norm(self.g, x, weight, eps)
        return self.g.op.LayerNormalization(x, weight, self.g.weight(f"{name}.bias"), axis=-1, epsilon=eps)

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        """x @ weight + bias in the graph's precision."""
        product = self.g.product(cast(self.g, x, self.dtype), f"{name}.weight", self.dtype)
        return self.g.op.Add(product, self.g.weight(f"{name}.bias", self.dtype))


class QwenAuthor:
    """A `VisionAuthor`."""

    def weights(self, spec: ModelSpec) -> list[Weight]:
        """See `vision_weights`."""
        return vision_weights(spec)

    def graph(self, spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
        """See `vision_graph`."""
        return vision_graph(spec, dialect, dtype, table)


AUTHOR = QwenAuthor()
