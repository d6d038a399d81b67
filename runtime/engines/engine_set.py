"""The engines of a bundle, target by target, as their manifests describe them. Loads none and imports no TensorRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.engine_manifest import EngineManifest, engine_paths, read_engine_manifest
from sdrpn.bundle.graphs import Parts, graph_named, graphs_of
from sdrpn.errors import BadBundle, BadInput

__all__ = ["EngineFile", "EngineSet", "engine_set", "engine_sets"]


@dataclass(frozen=True)
class EngineFile:
    """One engine. `fault`: why its manifest cannot be trusted; it is None then."""

    graph: str
    path: Path
    layers_path: Path
    manifest: EngineManifest | None
    fault: str | None = None


@dataclass(frozen=True)
class EngineSet:
    """The engines of one target; `missing`: graphs of the model without an engine."""

    bundle: Bundle
    target: str
    engines: Mapping[str, EngineFile]
    missing: tuple[str, ...]

    @property
    def manifests(self) -> dict[str, EngineManifest]:
        """The manifests that can be trusted."""
        return {name: engine.manifest for name, engine in self.engines.items() if engine.manifest is not None}

    @property
    def flavour(self) -> str:
        """TensorRT or TensorRT-RTX, by the first manifest."""
        return next(iter(self.manifests.values())).flavour

    @property
    def variant(self) -> Variant:
        """The variant that the engines were built from. Raises BadInput if the bundle no longer has it."""
        return self.bundle.variant(next(iter(self.manifests.values())).variant)

    @property
    def max_context(self) -> int:
        """Rows of the caches."""
        return min(manifest.max_context for manifest in self.manifests.values())

    @property
    def max_batch(self) -> int:
        """The most sequences that a decode step takes."""
        decoding = [manifest.max_batch for name, manifest in self.manifests.items() if graph_named(name).decodes]
        return min(decoding, default=1)

    @property
    def contexts(self) -> tuple[int, ...]:
        """Cache lengths that have profiles, in ascending order."""
        manifests = self.manifests
        return manifests.get("trunk", next(iter(manifests.values()))).contexts

    @property
    def host_code(self) -> bool:
        """Whether the engines contain code for the CPU, as version-compatible ones do."""
        return any(manifest.version_compatible for manifest in self.manifests.values())

    @property
    def looks(self) -> bool:
        """Whether nothing is missing that a look needs."""
        return self.bundle.spec.rpn is not None and not self.of("look").missing

    def of(self, parts: Parts) -> EngineSet:
        """Those alone that these parts of the model need."""
        wanted: set[str] = {graph.name for graph in graphs_of(self.bundle.spec, parts)}
        engines = {name: engine for name, engine in self.engines.items() if name in wanted}
        return dataclasses.replace(self, engines=engines, missing=tuple(g for g in self.missing if g in wanted))

    @property
    def build_command(self) -> str:
        """The command that builds these engines again."""
        return self.bundle.build_command(self.target)


def engine_sets(bundle: Bundle) -> tuple[EngineSet, ...]:
    """Every target that has at least one engine, by name."""
    folders = sorted(path.parent.name for path in (bundle.path / "engines").glob("*/*.engine.json"))
    return tuple(_read(bundle, target) for target in dict.fromkeys(folders))


def engine_set(bundle: Bundle, target: str) -> EngineSet:
    """The engines of one target. Raises BadInput if there are none."""
    sets = engine_sets(bundle)
    for engines in sets:
        if engines.target == target:
            return engines
    there = ", ".join(engines.target for engines in sets) or "none"
    raise BadInput(
        f"{bundle.path} has no engines for target {target!r}; it has {there}. "
        f"Build them: {bundle.build_command(target)}"
    )


def _read(bundle: Bundle, target: str) -> EngineSet:
    graphs = tuple(graph.name for graph in graphs_of(bundle.spec))
    engines: dict[str, EngineFile] = {}
    for graph in graphs:
        path, manifest_path, layers_path = engine_paths(bundle.path, target, graph)
        if not manifest_path.exists():
            continue
        try:
            engines[graph] = EngineFile(graph, path, layers_path, read_engine_manifest(manifest_path, bundle.roots))
        except BadBundle as error:
            engines[graph] = EngineFile(graph, path, layers_path, None, str(error))
    return EngineSet(bundle, target, engines, tuple(graph for graph in graphs if graph not in engines))
