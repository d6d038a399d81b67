"""Its vision graph: patches and places, each through one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sdrpn.export.decoder import FLOAT, cast
from sdrpn.export.dialects import Dialect
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable, matmul, plain
from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec


class WideAuthor:
    def weights(self, spec: ModelSpec) -> Sequence[Weight]:
        patch = family_of(spec).vision_shapes(spec)["vision.patch.weight"][1]
        return [
            matmul("vision.patch.weight", ["vision.patch.weight"], patch, spec.llm.width),
            matmul("vision.place.weight", ["vision.place.weight"], 2, spec.llm.width),
            plain("vision.patch.bias", ["vision.patch.bias"], (spec.llm.width,)),
        ]

    def graph(self, spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
        g = GraphAuthor("vision", dialect.opset, table)
        patches, places = (
            g.input(Declared(tensor.name, FLOAT, tensor.dims, tensor.role))
            for tensor in family_of(spec).vision_inputs(spec)
        )
        seen = g.product(cast(g, patches, dtype), "vision.patch.weight", dtype)
        placed = g.product(cast(g, places, dtype), "vision.place.weight", dtype)
        tokens = g.op.Add(g.op.Add(seen, placed), g.weight("vision.patch.bias", dtype))
        dims = ("images", "cells", spec.llm.width)
        g.output(cast(g, tokens, FLOAT), Declared("image_embeds", FLOAT, dims, "image_embeds"))
        return g


AUTHOR = WideAuthor()
