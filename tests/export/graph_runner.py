"""A bundle's graphs in ONNX Runtime, NumPy in and NumPy out: slow, plain, and without the runtime package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sdrpn.bundle.bundle import GraphInfo, open_bundle
from sdrpn.method.spec import ModelSpec

__all__ = ["Array", "Feeds", "GraphRunner"]

Array = NDArray[Any]
Feeds = dict[str, Array]


class GraphRunner:
    """All graphs of one variant, loaded when first used; caches are arrays that `run` updates."""

    def __init__(self, bundle: Path, variant: str) -> None:
        self.bundle = open_bundle(bundle)
        self.variant = self.bundle.variant(variant)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.bundle.spec

    def graph(self, name: str) -> GraphInfo:
        """What the manifest says about a graph."""
        return self.variant.graphs[name]

    def model(self, name: str) -> Path | bytes:
        """What is loaded: the bundle's file."""
        return self.bundle.file(self.graph(name).file)

    def caches(self, name: str, length: int, *, batch: int = 1, fill: float = 0.0) -> Feeds:
        """Caches of `length` rows; `fill` is the size of the noise in them, which nobody may see."""
        extents = {"batch": batch, "cache_length": length}
        rng = np.random.default_rng(length)
        return {
            tensor.name: (
                fill * rng.standard_normal([extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims])
            ).astype(tensor.dtype)
            for tensor in self.graph(name).inputs
            if "cache" in tensor.name
        }

    def call(self, name: str, feeds: Feeds) -> Feeds:
        """One run, outputs by name."""
        session = self._session(name)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    def rows(self, name: str, row_index: Array, positions: Array | None = None) -> Feeds:
        """row_index (B,S) and the tables of its positions (B,S), which are the rows' numbers where none are given."""
        table = next(tensor for tensor in self.graph(name).inputs if tensor.name == "rope_cos")
        found = [self.bundle.manifest.rotary.tables(of) for of in (row_index if positions is None else positions)]
        cos, sin = (np.stack(tables).astype(table.dtype) for tables in zip(*found, strict=True))
        if len(table.dims) == 4:  # with an axis for the heads
            cos, sin = cos[:, None], sin[:, None]
        return {"row_index": row_index, "rope_cos": cos, "rope_sin": sin}

    def run(
        self, name: str, hidden: Array, caches: Feeds, start: int | Array, last: int | Array | None = None
    ) -> Feeds:
        """Rows (B,S,D) written from `start` on, a number or one for each batch entry; `caches` are brought up to date.

        `last` is the row whose result is wanted, by default the last one. Returns what is no cache.
        """
        batch, rows = hidden.shape[:2]
        starts = np.broadcast_to(np.asarray(start, np.int64), (batch,)).copy()
        feeds: Feeds = {
            "inputs_embeds" if name == "trunk" else "tap": hidden.astype(np.float32),
            **self.rows(name, starts[:, None] + np.arange(rows)),
            "write_index": starts,
            **caches,
        }
        if name != "trunk":
            last = rows - 1 if last is None else last
            feeds["last_index"] = np.broadcast_to(np.asarray(last, np.int64), (batch,)).copy()
        results = self.call(name, feeds)
        for cache in caches:
            self._update(caches, cache, results, starts)
        return results

    def scores(self, results: Feeds, starts: Array | int, rows: int) -> Array:
        """(B,H,S_max) as if the cache were written in place: new scores lie after the cached ones."""
        scores: Array = results["scores"]
        if "new_scores" in results:
            for entry, start in enumerate(np.broadcast_to(starts, len(scores))):
                scores[entry, :, start : start + rows] = results["new_scores"][entry]
        return scores

    def _update(self, caches: Feeds, name: str, results: Feeds, starts: Array) -> None:
        if f"{name}_out" in results:
            caches[name] = results.pop(f"{name}_out")
            return
        new = results.pop(f"{name}_rows")
        for entry, start in enumerate(starts):
            caches[name][entry, :, start : start + new.shape[2]] = new[entry]

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            # Blocks of integers times floats. Integers on both sides, as in answers, would show little.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
            options.log_severity_level = 3  # not bound in place here, of which ONNX Runtime warns
            # For a model in memory, whose weights lie in the bundle all the same.
            folder = str(self.bundle.path)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            self._sessions[name] = onnxruntime.InferenceSession(self.model(name), options, ["CPUExecutionProvider"])
        return self._sessions[name]
