"""The author of a model's vision graph: its family names an object of this protocol. Imports no family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import onnx_ir as ir

from sdrpn.export.dialects import Dialect
from sdrpn.export.graph import GraphAuthor
from sdrpn.export.weights import Weight, WeightTable
from sdrpn.families.registry import family_of, load_part
from sdrpn.method.spec import ModelSpec

__all__ = ["VisionAuthor", "vision_author"]


class VisionAuthor(Protocol):
    """The family's part of an export."""

    def weights(self, spec: ModelSpec) -> Sequence[Weight]:
        """The graph's weights: canonical tensors as they are stored."""

    def graph(self, spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
        """The graph `vision`: the family's `vision_inputs` -> its `vision_outputs`, fp32."""


def vision_author(spec: ModelSpec) -> VisionAuthor:
    """The author of the model's family."""
    return cast(VisionAuthor, load_part(family_of(spec).vision_author))
