"""Let ONNX Runtime optimise graphs for this machine, and save the graph and its weights in the layout of the kernels.

Saved weights are memory-mapped, so that processes and sessions share them. Knows nothing about the content of a graph:
the caller may pass one that was rewritten.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import onnxruntime

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.errors import BadBundle, RunFailed
from sdrpn.runtime.backends.arrays import run_on_arrays, trial_feeds
from sdrpn.runtime.backends.external_data import graph_with_real_files, require_files
from sdrpn.runtime.backends.failures import first_line, not_saved
from sdrpn.runtime.backends.onnxruntime import WEIGHTS_FOLDER, OnnxRuntimeBackend, load_session, session_options
from sdrpn.runtime.backends.runner import Array

__all__ = ["save_graph", "values_changed"]

_LIBRARY = f"ONNX Runtime {onnxruntime.__version__}"


def save_graph(graph: GraphInfo, model: bytes | Path, weights: Path, out: Path, threads: int | None = None) -> None:
    """Write `out` and `out`.data, and check that they compute the same as the original graph.

    Args:
        model: the graph, as a file or as its bytes
        weights: folder that its weights' paths are relative to
    Raises: BadBundle if ONNX Runtime refuses the graph, RunFailed if it cannot be written, or computes something else
    """
    backend = OnnxRuntimeBackend("onnxruntime", threads)
    content = model if isinstance(model, bytes) else model.read_bytes()
    require_files(weights / graph.file, content, graph.weights, _LIBRARY)
    content, weights = graph_with_real_files(content, weights) or (content, weights)
    options = _saving(session_options(backend.threads), weights, out)
    try:
        session = load_session(content, f"the {graph.name} graph", options, ["CPUExecutionProvider"])
    except BadBundle as error:
        if not out.exists():
            raise
        # It writes what it has loaded: the graph is all right.
        raise not_saved(_LIBRARY, graph.name, out, first_line(error.__cause__ or error)) from error
    runner = backend.runner(graph, session)
    del session
    feeds = trial_feeds(graph.inputs)
    before = {name: array.copy() for name, array in run_on_arrays(backend, runner, feeds).items()}
    runner.close()
    saved = dataclasses.replace(graph, weights=(f"{out.name}.data",))
    runner = OnnxRuntimeBackend("onnxruntime", threads, optimized=True).load(saved, out)
    after = run_on_arrays(backend, runner, feeds)
    for name, array in before.items():
        if not np.array_equal(array, after[name]):
            raise RunFailed(
                f"{name} of the {graph.name} graph changed when it was saved; is the disk full or damaged? "
                "Free some space and try again"
            )


def values_changed(graph: GraphInfo, model: Path, changed: bytes, weights: Path, threads: int | None = None) -> float:
    """How far a rewritten graph's results are from the original's on random rows: a share of their spread.

    Caches do not count. Args: weights: as in `save_graph`
    Raises: BadBundle if ONNX Runtime refuses one of them
    """
    before, after = (_results(graph, content, weights, threads) for content in (model.read_bytes(), changed))
    caches = {tensor.name for tensor in graph.outputs if tensor.is_cache}
    return max(
        float(np.sqrt(np.mean(np.square(after[name] - values))) / (np.std(values) or 1))
        for name, values in before.items()
        if name not in caches
    )


def _results(graph: GraphInfo, content: bytes, weights: Path, threads: int | None) -> dict[str, Array]:
    backend = OnnxRuntimeBackend("onnxruntime", threads)
    content, weights = graph_with_real_files(content, weights) or (content, weights)
    options = session_options(backend.threads)
    options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(weights))
    session = load_session(content, f"the {graph.name} graph", options, ["CPUExecutionProvider"])
    runner = backend.runner(graph, session)
    found = run_on_arrays(backend, runner, trial_feeds(graph.inputs))
    runner.close()
    return {name: array.astype(np.float32) for name, array in found.items()}


def _saving(options: onnxruntime.SessionOptions, weights: Path, out: Path) -> onnxruntime.SessionOptions:
    options.optimized_model_filepath = os.fspath(out)
    options.log_severity_level = 3  # its warning that the file is for this processor only is expected
    entries = {
        WEIGHTS_FOLDER: os.fspath(weights),
        "session.optimized_model_external_initializers_file_name": f"{out.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return options
