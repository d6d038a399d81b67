"""Which weight is in which file, for all graphs of an export. Knows no graphs and writes nothing itself.

Dense: one file per graph. Quantised: one pair of files (codes, scales) per layer, so that a layer's files do not depend
on which other parts are kept in fp16; kept parts use the files of the fp16 export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from sdrpn.bundle.graphs import GraphName
from sdrpn.errors import BadInput
from sdrpn.export.gate import gate_weights
from sdrpn.export.llm import head_weights, tail_weights, trunk_weights
from sdrpn.export.options import ExportOptions
from sdrpn.export.quantization import Blocks
from sdrpn.export.quantized_weights import Calibration, Form, TensorReader
from sdrpn.export.rpn import rpn_weights
from sdrpn.export.vision_author import vision_author
from sdrpn.export.weights import Weight, WeightTable, plain
from sdrpn.host.progress import Grown
from sdrpn.method.spec import ModelSpec

__all__ = ["Tables"]


class Tables:
    """All weight tables of an export."""

    def __init__(self, spec: ModelSpec, options: ExportOptions) -> None:
        _require_layers(spec, options)
        self._options = options
        self._dense, llm = options.dense, spec.llm
        embedding = plain("llm.embed.weight", ["llm.embed.weight"], (llm.vocabulary, llm.width))
        # The host reads rows with NumPy, which has no bf16.
        self.embedding = WeightTable("embed", "fp16" if options.dense == "fp16" else "fp32", [embedding])
        self._groups: dict[GraphName, list[WeightTable]] = {
            "vision": self._whole("vision", [*vision_author(spec).weights(spec)]),
            "trunk": self._by_layer("trunk", trunk_weights(spec)),
            "tail": [*self._by_layer("tail", tail_weights(spec)), *self._whole("head", head_weights(spec), "lm_head")],
        }
        if spec.rpn is not None:
            self._groups["rpn"] = self._proposal("rpn", rpn_weights(spec))
        if spec.rpn is not None and spec.rpn.has_gate:
            self._groups["gate"] = self._proposal("gate", gate_weights(spec))

    def graphs(self, input_factors: Mapping[str, float]) -> dict[GraphName, WeightTable]:
        """The weights of every graph, by its name; for `input_factors` see there."""
        return {
            name: WeightTable(name, self._dense, [], *tables, input_factors=input_factors)
            for name, tables in self._groups.items()
        }

    @property
    def names(self) -> tuple[GraphName, ...]:
        """Names of the graphs."""
        return tuple(self._groups)

    def input_factors(self, calibration: Calibration | None) -> dict[str, float]:
        """Weight -> factor of its inputs, for weights in fp8 or nvfp4; not for the vision tower, whose inputs are not
        calibrated. Empty without a calibration."""
        if calibration is None:
            return {}
        tables = (table for name, tables in self._groups.items() if name != "vision" for table in tables)
        forms = (found for table in tables for found in table.forms())
        return {
            name: form.factor(calibration.largest(source))
            for name, source, form in forms
            if not isinstance(form, Blocks)
        }

    def quantized(self) -> Iterator[tuple[Weight, Form]]:
        """The matrices that are quantised, each once, and how."""
        for tables in self._groups.values():
            for table in tables:
                yield from table.quantized()

    def files(self) -> dict[str, int]:
        """Path inside the bundle -> size in bytes."""
        return {file: size for table in self._all() for file, size in table.files.items()}

    def graph_bytes(self) -> dict[GraphName, int]:
        """The size of every graph's weights."""
        return {name: sum(sum(table.files.values()) for table in tables) for name, tables in self._groups.items()}

    def write(
        self,
        folder: Path,
        reader: TensorReader,
        kept: frozenset[str],
        advance: Grown,
        finished: Callable[[tuple[str, ...]], None] = lambda files: None,
        calibration: Calibration | None = None,
    ) -> None:
        """Stream every weight file that is not kept; `finished` is called with completed files."""
        for table in (self.embedding, *(table for tables in self._groups.values() for table in tables)):
            table.write(folder, reader, kept, advance, finished, calibration)

    def _all(self) -> Iterator[WeightTable]:
        yield self.embedding
        for tables in self._groups.values():
            yield from tables

    def _whole(self, group: str, weights: list[Weight], part: str | None = None) -> list[WeightTable]:
        """One table for all; `part` (default: the group's name) decides whether and how to quantise."""
        return [WeightTable(group, self._dense, weights, form=self._options.form(part or group))]

    def _proposal(self, group: str, weights: list[Weight]) -> list[WeightTable]:
        """The RPN or the gate, which are kept or quantised together: one says whether, the other where to look."""
        kept = self._options.form("rpn") is None
        return self._whole(group, weights, "rpn") if kept else self._by_layer(group, weights)

    def _by_layer(self, group: str, weights: list[Weight]) -> list[WeightTable]:
        """One table for norms; one for dense matrices, or one per layer for quantised ones."""
        if not self._options.is_quantized:
            return self._whole(group, weights)
        norms = [weight for weight in weights if weight.role == "norm"]
        matrices = groupby((w for w in weights if w.role != "norm"), key=_layer_of)
        layers = [
            WeightTable(layer, self._dense, list(own), form=self._options.form(_part_of(layer)))
            for layer, own in matrices
        ]
        return [WeightTable(group, self._dense, norms), *layers]


def _layer_of(weight: Weight) -> str:
    """llm.layers.3.attention.o.weight -> llm.layers.3."""
    return ".".join(weight.name.split(".")[:3])


def _part_of(layer: str) -> str:
    """The part's name in options: llm.layers.3 -> layers.3; every layer of RPN and gate is "rpn"."""
    model, _, number = layer.split(".")
    return f"layers.{number}" if model == "llm" else "rpn"


def _require_layers(spec: ModelSpec, options: ExportOptions) -> None:
    for option, name in (*(("keep", name) for name in options.keep), *(("int8", name) for name in options.int8)):
        number = name.removeprefix("layers.")
        if number.isdigit() and int(number) >= spec.llm.layers:
            raise BadInput(f"{name} does not exist: the LLM has layers 0 to {spec.llm.layers - 1}", options=(option,))
