"""The vision graph: pixels to image tokens. CLIP up to the selected hidden state, no CLS, then the projector."""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir

from sdrpn.export.decoder import FLOAT, INT64, cast
from sdrpn.export.dialects import AttentionShape, Dialect
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable, matmul, norm, plain
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.method.spec import ModelSpec

__all__ = ["AUTHOR", "ClipAuthor", "vision_graph", "vision_weights"]


def vision_weights(spec: ModelSpec) -> list[Weight]:
    """The tower's layers that are used, and the projector."""
    vision, width = clip_of(spec), clip_of(spec).width
    patch = (width, 3, vision.patch_size_px, vision.patch_size_px)
    positions = (vision.image_tokens + 1, width)
    return [
        norm("vision.class_embedding", "vision.class_embedding", (1, 1, width)),
        plain("vision.patch_embedding.weight", ["vision.patch_embedding.weight"], patch),
        norm("vision.position_embedding", "vision.position_embedding", positions),
        *_norm_pair("vision.pre_norm", width),
        *(w for i in range(vision.used_layers) for w in _layer_weights(spec, f"vision.layers.{i}")),
        *(
            weight
            for name, (inputs, outputs) in zip(
                _projector_names(spec), pairwise(vision.projector_widths(spec.llm)), strict=True
            )
            for weight in _linear(name, [name], inputs, outputs)
        ),
    ]


def _layer_weights(spec: ModelSpec, prefix: str) -> list[Weight]:
    width, mlp = clip_of(spec).width, clip_of(spec).mlp_width
    return [
        *_norm_pair(f"{prefix}.norm1", width),
        *_linear(f"{prefix}.attention.qkv", [f"{prefix}.attention.{p}" for p in "qkv"], width, 3 * width),
        *_linear(f"{prefix}.attention.out", [f"{prefix}.attention.out"], width, width),
        *_norm_pair(f"{prefix}.norm2", width),
        *_linear(f"{prefix}.mlp.fc1", [f"{prefix}.mlp.fc1"], width, mlp),
        *_linear(f"{prefix}.mlp.fc2", [f"{prefix}.mlp.fc2"], mlp, width),
    ]


def _projector_names(spec: ModelSpec) -> list[str]:
    return [f"projector.fc{number + 1}" for number in range(clip_of(spec).projector_layers)]


def _norm_pair(name: str, width: int) -> list[Weight]:
    return [norm(f"{name}.{part}", f"{name}.{part}", (width,)) for part in ("weight", "bias")]


def _linear(name: str, sources: list[str], inputs: int, outputs: int) -> list[Weight]:
    weight = matmul(f"{name}.weight", [f"{source}.weight" for source in sources], inputs, outputs)
    return [weight, plain(f"{name}.bias", [f"{source}.bias" for source in sources], (outputs,))]


def vision_graph(spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
    """pixel_values (N,3,R,R) -> image_embeds (N,G*G,D) fp32."""
    vision, side = clip_of(spec), clip_of(spec).image_size_px
    g = GraphAuthor("vision", dialect.opset, table)
    author = _TowerAuthor(g, dialect, spec, dtype)
    hidden = author.embed(g.input(Declared("pixel_values", FLOAT, ("images", 3, side, side), "pixels")))
    for index in range(vision.used_layers):
        hidden = author.layer(hidden, f"vision.layers.{index}")
    first, end, axis = (g.constant([n], INT64) for n in (1, vision.image_tokens + 1, 1))
    patches = g.op.Slice(hidden, first, end, axis, _outputs=["patches"])  # CLS dropped, no post-norm
    with g.scope("projector"):
        first_layer, *other_layers = _projector_names(spec)
        projected = author.linear(patches, first_layer)
        for name in other_layers:
            projected = author.linear(g.op.Gelu(projected), name)
    dims = ("images", vision.image_tokens, spec.llm.width)
    g.output(cast(g, projected, FLOAT), Declared("image_embeds", FLOAT, dims, "image_embeds"))
    return g


class _TowerAuthor:
    """Writes CLIP's layers; residual stream and norms in fp32, matmuls in `dtype`."""

    def __init__(self, g: GraphAuthor, dialect: Dialect, spec: ModelSpec, dtype: ir.DataType) -> None:
        self.g, self.dialect, self.spec, self.dtype = g, dialect, clip_of(spec), dtype
        head_dim = self.spec.width // self.spec.heads
        self.shape = AttentionShape(self.spec.heads, self.spec.heads, head_dim, dtype)

    def embed(self, pixels: ir.Value) -> ir.Value:
        """(N,3,R,R) -> (N,1+G*G,C): patches, the class token before them, positions, pre-norm."""
        g, op, width = self.g, self.g.op, self.spec.width
        size = [self.spec.patch_size_px] * 2
        patches = op.Conv(
            cast(g, pixels, self.dtype),
            g.weight("vision.patch_embedding.weight", self.dtype),
            kernel_shape=size,
            strides=size,
        )
        rows = op.Transpose(op.Reshape(patches, g.constant([0, width, -1], INT64)), perm=[0, 2, 1])
        images = op.Shape(pixels, start=0, end=1)
        token_shape = op.Concat(images, g.constant([1, width], INT64), axis=0)
        class_token = op.Expand(g.weight("vision.class_embedding"), token_shape)
        tokens = op.Concat(class_token, cast(g, rows, FLOAT), axis=1)
        return self.norm(op.Add(tokens, g.weight("vision.position_embedding")), "vision.pre_norm")

    def layer(self, x: ir.Value, prefix: str) -> ir.Value:
        """Attention and MLP, each after its norm and added to x (N,1+G*G,C)."""
        g, op = self.g, self.g.op
        with g.scope(prefix):
            x = op.Add(x, cast(g, self._attention(self.norm(x, f"{prefix}.norm1"), prefix), FLOAT))
            inner = self._activation(self.linear(self.norm(x, f"{prefix}.norm2"), f"{prefix}.mlp.fc1"))
            return op.Add(x, cast(g, self.linear(inner, f"{prefix}.mlp.fc2"), FLOAT), _outputs=["hidden"])

    def _attention(self, x: ir.Value, prefix: str) -> ir.Value:
        g, op, shape = self.g, self.g.op, self.shape
        packed = self.linear(x, f"{prefix}.attention.qkv")
        parts = g.split(packed, ["q", "k", "v"])
        to_heads = g.constant([0, 0, shape.heads, shape.head_dim], INT64)
        q, k, v = (op.Transpose(op.Reshape(part, to_heads), perm=[0, 2, 1, 3]) for part in parts)
        y = op.Transpose(self.dialect.attend(g, q, k, v, None, shape), perm=[0, 2, 1, 3])
        return self.linear(op.Reshape(y, g.constant([0, 0, self.spec.width], INT64)), f"{prefix}.attention.out")

    def _activation(self, x: ir.Value) -> ir.Value:
        """CLIP's quick GELU is x * sigmoid(1.702 x)."""
        op = self.g.op
        if self.spec.activation == "gelu":
            return op.Gelu(x)
        return op.Mul(x, op.Sigmoid(op.Mul(x, self.g.constant(1.702, self.dtype))))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """LayerNorm in fp32."""
        weight, bias = self.g.weight(f"{name}.weight"), self.g.weight(f"{name}.bias")
        return self.g.op.LayerNormalization(x, weight, bias, axis=-1, epsilon=self.spec.layer_norm_eps)

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """x @ weight + bias in the graph's precision."""
        product = self.g.product(cast(self.g, x, self.dtype), f"{name}.weight", self.dtype)
        return self.g.op.Add(product, self.g.weight(f"{name}.bias", self.dtype))


class ClipAuthor:
    """A `VisionAuthor`."""

    def weights(self, spec: ModelSpec) -> list[Weight]:
        """See `vision_weights`."""
        return vision_weights(spec)

    def graph(self, spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
        """See `vision_graph`."""
        return vision_graph(spec, dialect, dtype, table)


AUTHOR = ClipAuthor()
