"""Parts of a bundle's graphs in fewer bits than it has them in, where that changes the results of a graph little."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, GraphInfo
from sdrpn.bundle.graphs import graph_named
from sdrpn.errors import BadInput

__all__ = ["GROUP_QUERY", "INT4_PARTS", "INT8_PARTS", "STANDARD", "PartCodes", "rewritten"]

GROUP_QUERY, STANDARD = "group-query", "standard"

_HEAD = "llm.head.weight"
# Parts that exports keep in floats -> their graphs, and the weights that are meant; None: all matrices.
INT8_PARTS: dict[str, tuple[tuple[str, ...], frozenset[str] | None]] = {
    "lm_head": (("tail",), frozenset({_HEAD})),
    "rpn": (("rpn", "gate"), None),
    "vision": (("vision",), None),
}
INT4_PARTS = ("lm_head",)  # the vision tower never gets them, and the RPN's map chooses the crops
# As much as codes of so many bits may change the results of a graph for random rows, as a share of their spread. 4 bits
# change those of normally distributed weights by 10 % in blocks of 32, and of the trained small model by 19 %, whose
# answers stayed as good: docs/benchmarks.md.
_MOST_CHANGED = {8: 0.05, 4: 0.25}


@dataclass
class PartCodes:
    """Which parts get codes, and what became of them: by how much their graph's results change, as a share of their
    spread."""

    bits: Mapping[str, int]  # part -> 8 or 4
    block: int = 32  # inputs that share a scale of 4 bits
    head: Callable[[], Any] | None = (
        None  # reads the checkpoint's (N,K); None: 4 bits are made from what the bundle has
    )
    threads: int | None = None
    done: dict[int, dict[str, float]] = field(default_factory=lambda: {8: {}, 4: {}})  # by bits
    left: dict[int, dict[str, float]] = field(default_factory=lambda: {8: {}, 4: {}})

    def apply(self, bundle: Bundle, graph: GraphInfo, attention: str) -> bytes | None:
        """The graph with what was asked for; None where it has none of these parts, or they would change too much.

        Raises: BadInput for a head that is in 4 bits already
        """
        from sdrpn.runtime.optimize import values_changed

        for part, bits in self.bits.items():
            graphs, weights = INT8_PARTS[part]
            if graph.name not in graphs:
                continue
            path = bundle.file(graph.file)
            content = rewritten(path, graph, attention, functools.partial(self._coded, bits=bits, weights=weights))
            changed = values_changed(graph, path, content, bundle.path, self.threads)
            enough = changed <= _MOST_CHANGED[bits]
            (self.done if enough else self.left)[bits][part if weights else graph.name] = changed
            return content if enough else None
        return None

    @property
    def lines(self) -> list[str]:
        """What became of each part, for people."""
        kept = {8: "stays in floats", 4: "stays as it is"}
        done = [
            f"{part} in {bits} bits, which changes its results by {share:.1%}"
            for bits, found in self.done.items()
            for part, share in sorted(found.items())
        ]
        left = [
            f"{part} {kept[bits]}: {bits} bits would change its results by {share:.1%}"
            for bits, found in self.left.items()
            for part, share in sorted(found.items())
        ]
        return [*done, *left]

    def _coded(self, model: Any, *, bits: int, weights: frozenset[str] | None) -> None:
        from sdrpn.export.coded_matrices import use_eight_bits, use_four_bits

        if bits == 8:
            use_eight_bits(model, weights)
        elif use_four_bits(model, _HEAD, self.block, None if self.head is None else self.head()) == 0:
            raise BadInput("the head is neither in floats nor in 8 bits; leave it out", options=("int4",))


def rewritten(
    path: Path, graph: GraphInfo, attention: str, change: Callable[[Any], None] = lambda model: None
) -> bytes:
    """A graph with ONNX Runtime's own attention where that is asked for, and with a change of its matrices. The parts
    of a product that a vision tower splits become products of their own.
    """
    import onnx_ir

    from sdrpn.export.ort_variant import use_group_query
    from sdrpn.export.ort_vision import split_products, use_multi_head

    model = onnx_ir.load(path)
    if attention == GROUP_QUERY and graph_named(graph.name).has_caches:
        use_group_query(model, str(path))
    elif attention == GROUP_QUERY:
        use_multi_head(model)
    change(model)
    if not graph_named(graph.name).has_caches:
        split_products(model)  # of what is left: a matrix in 8 bits stays whole
    return bytes(onnx_ir.to_proto(model).SerializeToString())
