"""A Qwen bundle's graphs, run by hand: what a runtime does, in the fewest lines. NumPy and ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdrpn.checkpoint import open_checkpoint
from sdrpn.families.family import VisionInputs
from sdrpn.families.registry import family_of
from tests.export.graph_runner import Array, Feeds, GraphRunner

NOISE = 3.0  # in rows of caches that nothing may read
SPARE = 5  # such rows


@dataclass(frozen=True, eq=False)
class Look:
    """Image tokens (n,D), and as many features of each."""

    embeds: Array
    deepstack: tuple[Array, ...]


class QwenGraphs(GraphRunner):
    """One variant; the embedding table is the checkpoint's."""

    def __init__(self, bundle: Path, variant: str, checkpoint: Path) -> None:
        super().__init__(bundle, variant)
        with open_checkpoint(checkpoint) as opened:
            self.embedding = np.asarray(opened.read("llm.embed.weight"), np.float32)

    def look(self, inputs: VisionInputs) -> Look:
        """One picture or crop."""
        found = self.call("vision", dict(inputs))
        features = [found[f"deepstack.{number}"][0] for number in range(len(found) - 1)]
        return Look(found["image_embeds"][0], tuple(features))

    def rows_of(self, ids: Array, image: Array, looks: list[Look]) -> Feeds:
        """The trunk's values for tokens (S,) of which `image` are those of the looks, in order."""
        embeds = self.embedding[np.where(image, 0, ids)]
        embeds[image] = np.concatenate([look.embeds for look in looks])
        feeds = {"inputs_embeds": embeds}
        for number in range(family_of(self.spec).deepstack(self.spec.vision)):
            dense = np.zeros_like(embeds)
            dense[image] = np.concatenate([look.deepstack[number] for look in looks])
            feeds[f"deepstack.{number}"] = dense
        return feeds

    def spare(self, name: str, rows: int) -> Feeds:
        """Caches for so many rows and a few more, full of noise."""
        return self.caches(name, rows + SPARE, fill=NOISE)

    def pass_through(
        self, name: str, values: Feeds, positions: Array, caches: Feeds, start: int = 0, last: int | None = None
    ) -> Feeds:
        """Rows (S,D) of every value at positions (axes,S) into the caches from `start` on; results without batch."""
        axes = family_of(self.spec).axis_of(self.spec)
        table = next(tensor for tensor in self.graph(name).inputs if tensor.name == "rope_cos")
        cos, sin = (part.astype(table.dtype)[None] for part in self.bundle.manifest.rotary.tables(positions, axes))
        if len(table.dims) == 4:
            cos, sin = cos[:, None], sin[:, None]
        count = positions.shape[1]
        feeds: Feeds = {
            **{key: value[None] for key, value in values.items()},
            "rope_cos": cos,
            "rope_sin": sin,
            "row_index": np.arange(start, start + count, dtype=np.int64)[None],
            "write_index": np.array([start], np.int64),
            **caches,
        }
        if name != "trunk":
            feeds["last_index"] = np.array([count - 1 if last is None else last], np.int64)
        results = self.call(name, feeds)
        for cache in caches:
            self._update(caches, cache, results, np.array([start]))
        return {key: value[0] for key, value in results.items()}

    def map_of(self, tap: Array, positions: Array, cuts: tuple[int, ...]) -> tuple[Feeds, Feeds]:
        """The RPN over rows in runs that end at `cuts`: the last run's results over all rows, and its raw ones."""
        caches, start, query = self.spare("rpn", len(tap)), 0, None
        results: Feeds = {}
        for end in cuts:
            values = {"tap": tap[start:end]}
            if "first_query" in {tensor.name for tensor in self.graph("rpn").inputs}:
                values["first_query"] = np.full((1, 1, self.spec.llm.head_dim), 7.0, np.float32)
                values["first_query"] = values["first_query"] if query is None else query
            results = self.pass_through("rpn", values, positions[:, start:end], caches, start)
            query, first, start = results.get("first_query_out"), start, end
        whole: Feeds = {}
        for name in ("scores", "sink_logits", "seen"):
            if name in results:
                cached = results[name][..., :first]
                new = results.get(f"new_{name}", results[name][..., first:end])
                whole[name] = np.concatenate((cached, new[..., : end - first]), axis=-1)
        return whole, results


def close(found: Any, expected: Any, most: float, what: str) -> None:
    """Fail with the largest difference."""
    wanted = np.asarray(expected)
    assert np.shape(found) == wanted.shape, f"{what}: {np.shape(found)} and {wanted.shape}"
    difference = float(np.abs(np.asarray(found, np.float64) - wanted).max()) if wanted.size else 0.0
    assert difference <= most, f"{what} differs by {difference:.2e}"
