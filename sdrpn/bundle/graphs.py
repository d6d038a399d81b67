"""The graphs of a model, and the roles of their tensors. Tables only; knows no shapes, files or libraries.

A picture passes through them in the order of GRAPHS. A manifest gives every tensor a role, by which all stages find
the tensors that they need; names are only for people and for binding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec

__all__ = [
    "GRAPHS",
    "ROLES",
    "Graph",
    "GraphName",
    "Parts",
    "Role",
    "RoleName",
    "graph_named",
    "graphs_of",
    "other_parts",
]

GraphName = Literal["vision", "trunk", "gate", "rpn", "tail"]
Parts = Literal["all", "look"]  # everything, or what finds where a question points
RoleName = Literal[
    "pixels",
    "look",
    "image_embeds",
    "deepstack",
    "hidden",
    "tap",
    "map_statistics",
    "gate_logit",
    "scores",
    "new_scores",
    "first_query",
    "sink_logits",
    "new_sink_logits",
    "seen",
    "new_seen",
    "logits",
    "row_index",
    "write_index",
    "last_index",
    "rope_cos",
    "rope_sin",
    "cache",
    "cache_scale",
    "new_rows",
    "new_scales",
]
Kind = Literal["values", "index", "cache"]


@dataclass(frozen=True)
class Role:
    """The role of a tensor."""

    name: RoleName
    kind: Kind  # the model's values, indices of rows, or state that is kept between runs
    about: str


_ROLES = (
    Role("pixels", "values", "normalised pixels of pictures, as squares (N,3,R,R) or in the family's own form"),
    Role("look", "values", "further inputs of the vision tower"),
    Role("image_embeds", "values", "image tokens of pictures (N,h*w,D)"),
    Role("deepstack", "values", "features of image tokens for an early layer of the LLM (N,h*w,D), or dense (B,S,D)"),
    Role("hidden", "values", "embeddings of new rows, for the first layer (B,S,D)"),
    Role("tap", "values", "the residual stream between trunk and tail (B,S,D)"),
    Role("map_statistics", "values", "statistics of the RoI map, for a gate that is a probe (B,8)"),
    Role("gate_logit", "values", "whether to look again, before the sigmoid (B,1)"),
    Role("scores", "values", "scores of the query row against every row of the cache (B,H,S_max)"),
    Role("new_scores", "values", "scores of the query row against new rows, where the cache is read only (B,H,S)"),
    Role("first_query", "values", "the first head's query of the first row of a sequence (B,1,1,head_dim)"),
    Role("sink_logits", "values", "how much that query looks at every row of the cache, mean over key heads (B,S_max)"),
    Role("new_sink_logits", "values", "the same for new rows, where the cache is read only (B,S)"),
    Role("seen", "values", "highest score of any new row against every row of the cache, mean over heads (B,S_max)"),
    Role("new_seen", "values", "the same for new rows, where the cache is read only (B,S)"),
    Role("logits", "values", "logits of the token after the query row (B,V)"),
    Role("row_index", "index", "the cache row of each new row, which decides what it attends to (B,S)"),
    Role("write_index", "index", "the first cache row that is written (B,)"),
    Role("last_index", "index", "which of the new rows is the query row (B,)"),
    Role("rope_cos", "values", "cosines of the rotary embedding of new rows (B,S,head_dim/2)"),
    Role("rope_sin", "values", "sines of the same angles"),
    Role("cache", "cache", "keys or values of all rows (B,H_kv,S_max,head_dim); as an output updated in place"),
    Role("cache_scale", "cache", "scales of a cache in 8 bits (B,H_kv,S_max,1)"),
    Role("new_rows", "cache", "new rows of a cache that is read only (B,H_kv,S,head_dim)"),
    Role("new_scales", "cache", "scales of such rows (B,H_kv,S,1)"),
)
ROLES: Mapping[str, Role] = {row.name: row for row in _ROLES}


@dataclass(frozen=True)
class Graph:
    """One part of the model that is its own graph, and later its own engine."""

    name: GraphName
    takes: RoleName  # its input, besides indices and caches
    gives: RoleName
    needs: tuple[GraphName, ...]  # graphs whose outputs it takes
    has_caches: bool = True
    coded_caches: bool = False  # whether its caches may be in 8 bits
    decodes: bool = False  # whether it is part of a decode step
    asks_one_row: bool = False  # whether it takes last_index and returns a result for that row only
    only_with_rpn: bool = False
    only_with_gate: bool = False
    looks: bool = True  # whether it is needed to find where a question points

    def attentions(self, spec: ModelSpec) -> int:
        """The number of layers with attention. The RPN's last layer only computes scores."""
        layers: dict[GraphName, int] = {
            "vision": family_of(spec).vision_layers(spec.vision),
            "trunk": spec.tap_layer,
            "gate": 0 if spec.rpn is None else spec.rpn.gate_layers,
            "rpn": 0 if spec.rpn is None else spec.rpn.layers - 1,
            "tail": spec.tail_layers,
        }
        return layers[self.name]


# In the order in which an image passes through them. The caches of gate and RPN are never in 8 bits: they decide
# whether and where to look again.
GRAPHS = (
    Graph("vision", "pixels", "image_embeds", (), has_caches=False),
    Graph("trunk", "hidden", "tap", ("vision",), coded_caches=True, decodes=True),
    Graph("gate", "tap", "gate_logit", ("trunk",), asks_one_row=True, only_with_rpn=True, only_with_gate=True),
    Graph("rpn", "tap", "scores", ("trunk",), asks_one_row=True, only_with_rpn=True),
    Graph("tail", "tap", "logits", ("trunk",), coded_caches=True, decodes=True, asks_one_row=True, looks=False),
)
_BY_NAME: Mapping[str, Graph] = {graph.name: graph for graph in GRAPHS}


def graph_named(name: str) -> Graph:
    """The entry of a graph; KeyError for an unknown name."""
    return _BY_NAME[name]


def other_parts(parts: Parts) -> Parts:
    """Looks alone in place of all, or the reverse."""
    return "all" if parts == "look" else "look"


def graphs_of(spec: ModelSpec, parts: Parts = "all") -> Sequence[Graph]:
    """Those that this model has, or those of them that a look needs. Raises BadInput where none can look."""
    if parts not in get_args(Parts):
        raise BadInput(f"parts is {parts!r}; expected {' or '.join(map(repr, get_args(Parts)))}", options=("parts",))
    if parts == "look" and spec.rpn is None:
        raise BadInput(
            "this bundle has no RPN, so that nothing can look; with all its parts it answers as the plain model"
        )
    gated = spec.rpn is not None and spec.rpn.has_gate
    there = tuple(
        graph
        for graph in GRAPHS
        if (spec.rpn is not None or not graph.only_with_rpn) and (gated or not graph.only_with_gate)
    )
    return tuple(graph for graph in there if graph.looks) if parts == "look" else there
