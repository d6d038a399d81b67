"""Engines as files: manifests that fit a bundle, beside engines of any bytes. No TensorRT is needed to make them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, GraphInfo, TensorInfo
from sdrpn.bundle.engine_manifest import EngineManifest, EngineTensor, ParityGate, Stamp, TimingCacheUse, engine_paths
from sdrpn.runtime.engines.platform import Platform, PlatformGpu

__all__ = ["TARGET", "engine_manifest", "platform", "rewrite", "write_engines"]

TARGET = "rtx-4090"
VERSION = "1.7.1.116"
_PRODUCT = {
    "name": "product",
    "kind": "gemm",
    "subgraph": 0,
    "inputs": [{"name": "x", "dims": [1, 64], "dtype": "Half"}],
    "constants": [{"name": "w", "dims": [64, 32], "dtype": "Int4"}, {"name": "beta", "dims": [1], "dtype": "Float"}],
    "outputs": [{"name": "y", "dims": [1, 32], "dtype": "Half"}],
}
_KERNELS = [_PRODUCT, _PRODUCT, {"name": "attention", "kind": "mha", "subgraph": 1}]


def platform(flavour: str = "tensorrt-rtx", **changes: Any) -> Platform:
    """A machine that the engines of `write_engines` fit."""
    gpu = PlatformGpu("RTX 4090", "SM89", 20_000_000_000, "580.65.06")
    here = Platform("Linux", "x86_64", {flavour: VERSION}, gpu, 13040, 13000, None)
    return dataclasses.replace(here, **changes)


def write_engines(
    bundle: Bundle,
    variant: str = "fused-fp32",
    *,
    target: str = TARGET,
    flavour: str = "tensorrt-rtx",
    max_context: int = 128,
    max_batch: int = 1,
    shorter_contexts: tuple[int, ...] = (),
) -> None:
    """An engine, its manifest and its kernels for every graph of a variant."""
    for name in bundle.variant(variant).graphs:
        engine, manifest_path, layers = engine_paths(bundle.path, target, name)
        engine.parent.mkdir(parents=True, exist_ok=True)
        engine.write_bytes(f"engine of {name}".encode())
        layers.write_text(json.dumps(_KERNELS))
        contexts = (*shorter_contexts, max_context)
        manifest = engine_manifest(bundle, variant, name, engine, target, flavour, contexts, max_batch)
        manifest_path.write_text(manifest.to_text())


def engine_manifest(
    bundle: Bundle,
    variant: str,
    name: str,
    engine: Path,
    target: str,
    flavour: str,
    contexts: tuple[int, ...],
    max_batch: int,
) -> EngineManifest:
    """As the builder writes it, with profiles in its order."""
    graph = bundle.variant(variant).graphs[name]
    profiles = _profiles(name, contexts, max_batch)
    files = bundle.manifest.files
    return EngineManifest(
        graph=name,
        target=target,
        variant=variant,
        precision=bundle.variant(variant).precision,
        flavour=flavour,
        library_version=VERSION,
        compute_capabilities=("SM86", "SM89"),
        system="Linux",
        machine="x86_64",
        gpu="NVIDIA GeForce RTX 4090",
        driver="550.54",
        cuda=12040,
        max_context=contexts[-1],
        contexts=contexts,
        max_batch=max_batch,
        opt_level=None,
        workspace_mb=None,
        weight_streaming=False,
        hardware_compatibility="NONE",
        version_compatible=False,
        refit=False,
        profiling_verbosity="detailed",
        timing_cache=TimingCacheUse(0, 10) if flavour == "tensorrt" else None,
        profiles=tuple(profiles),
        tensors=_tensors(graph, profiles, contexts),
        decomposed_attention=False,
        fallback=None,
        kernels=3,
        kernel_gate=(),
        activation_bytes=1 << 20,
        build_s=1.5,
        peak_rss_bytes=1 << 28,
        compiled_sha256="0" * 64,
        sources={
            entry: Stamp(files[entry].size_bytes, 1, files[entry].sha256) for entry in (graph.file, *graph.weights)
        },
        engine=Stamp(engine.stat().st_size, engine.stat().st_mtime_ns, hashlib.sha256(engine.read_bytes()).hexdigest()),
        cache_key="1" * 64,
        parity=(ParityGate("trunk", "values", "tap, prefill", 1e-6, 5e-4, 4, True),),
    )


def rewrite(bundle: Path, graph: str, /, **changes: Any) -> None:
    """Write other entries into a manifest, with the digest that they give."""
    path = engine_paths(bundle, TARGET, graph)[1]
    value = json.loads(path.read_text())
    del value["digest"]
    path.write_text(dataclasses.replace(EngineManifest.from_json(value), **changes).to_text())


Extents = dict[str, tuple[int, int, int]]


def _profiles(graph: str, contexts: tuple[int, ...], max_batch: int) -> dict[str, Extents]:
    if graph == "vision":
        return {"images": {"images": (1, 1, max(2, max_batch))}}
    found: dict[str, Extents] = {}
    for context in contexts:
        ending = f"-{context}" if len(contexts) > 1 else ""
        rows = (context,) * 3
        if graph != "rpn":
            decode = {"batch": (1, 1, max_batch), "sequence": (1, 1, 1), "cache_length": rows}
            found[f"decode{ending}"] = decode
        prefill = {"batch": (1, 1, 1), "sequence": (1, context // 2, context), "cache_length": rows}
        found[f"prefill{ending}"] = prefill
    return found


def _tensors(graph: GraphInfo, profiles: dict[str, Extents], contexts: tuple[int, ...]) -> tuple[EngineTensor, ...]:
    length: int | str = contexts[0] if len(contexts) == 1 else "cache_length"
    return tuple(
        EngineTensor(
            tensor.name,
            mode,
            tensor.dtype,
            tuple(-1 if isinstance(d, str) else d for d in (length if d == "cache_length" else d for d in tensor.dims)),
            tuple(_extents(tensor, extents) for extents in profiles.values()) if mode == "input" else (),
        )
        for mode, tensors in (("input", graph.inputs), ("output", graph.outputs))
        for tensor in tensors
    )


def _extents(tensor: TensorInfo, extents: Extents) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(extents[d][end] if isinstance(d, str) else d for d in tensor.dims) for end in range(3))
