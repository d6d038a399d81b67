"""Inspect a bundle: its model and files; its engines, whether they fit this machine, and their kernels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.links import link_roots
from sdrpn.host.listed_files import read_manifest
from sdrpn.reports.engine_page import PageEngine, page_text
from sdrpn.runtime.engines.engine_set import EngineFile, EngineSet, engine_set, engine_sets
from sdrpn.runtime.engines.platform import read_platform
from sdrpn.runtime.engines.preflight import Problem, check_engines

__all__ = [
    "Bundle",
    "EngineSet",
    "TargetReport",
    "engine_sets",
    "engines_to_json",
    "inspect_bundle",
    "inspect_engines",
    "read_asked",
    "write_engine_page",
]

_MOST_LAYERS_BYTES = 32 * 1024 * 1024


def inspect_bundle(path: Path | str, *, verify: bool = False) -> Bundle:
    """Read a bundle's manifest and compare its files with it: all sizes, and the digests of small files.

    Args:
        path: folder, or `demo`
        verify: also the digests of large files

    Raises: BadBundle if something is missing or was changed
    """
    bundle = open_bundle(bundle_path(path))
    bundle.verify(_files_that_belong(bundle), large=verify)
    return bundle


def _files_that_belong(bundle: Bundle) -> list[str]:
    """All files that the manifest lists; for a release, those that engines need."""
    manifest = bundle.manifest
    if not bundle.release_targets:
        return list(manifest.files)
    tables = {variant.embedding for variant in manifest.variants.values()}
    return sorted(tables | ({manifest.tokenizer} if manifest.tokenizer else set()))


@dataclass(frozen=True)
class TargetReport:
    """One target: its engines, their problems on this machine, and on request their kernels by graph."""

    engines: EngineSet
    problems: tuple[Problem, ...]
    layers: dict[str, list[dict[str, Any]]]


def inspect_engines(
    path: Path | str, target: str | None = None, *, verify: bool = False, with_layers: bool = False
) -> tuple[TargetReport, ...]:
    """Read the manifests of a bundle's engines and compare them with this machine. Loads none.

    Args:
        path: folder of the bundle, or `demo`
        target: only this target's engines; None: all
        verify: hash files again, even if size and time are unchanged
        with_layers: also read the kernels

    Raises: BadInput if there are no engines, BadBundle for a list of kernels that cannot be read
    """
    bundle = open_bundle(bundle_path(path))
    sets = engine_sets(bundle) if target is None else (engine_set(bundle, target),)
    if not sets:
        raise BadInput(f"{bundle.path} has no engines; build them: {bundle.build_command()}")
    platform = read_platform()
    return tuple(
        TargetReport(
            engines,
            check_engines(engines, platform, verify=verify),
            {graph: _layers(engine) for graph, engine in engines.engines.items()} if with_layers else {},
        )
        for engines in sets
    )


def engines_to_json(report: Sequence[TargetReport]) -> list[dict[str, Any]]:
    """A list of targets: engines with their manifests, problems by field and as one line, kernels."""
    return [
        {
            "target": target.engines.target,
            "engines": {
                graph: {
                    "path": engine.path,
                    "manifest": engine.manifest,
                    "fault": engine.fault,
                    "kernel_verdict": engine.manifest.kernel_verdict if engine.manifest is not None else None,
                }
                for graph, engine in target.engines.engines.items()
            },
            "problems": [{**dataclasses.asdict(problem), "line": str(problem)} for problem in target.problems],
            **({"layers": target.layers} if target.layers else {}),
        }
        for target in report
    ]


def write_engine_page(path: Path, report: Sequence[TargetReport], asked: Mapping[str, str] | None = None) -> None:
    """Write a page about all engines of a bundle.

    Args:
        asked: requested targets and their outcome, so that the page also lists those without engines

    Raises BadInput for a name that is neither .md nor .html, or a file that cannot be written."""
    bundle = report[0].engines.bundle
    rows = [
        PageEngine(target.engines.target, graph, engine.manifest, engine.fault or _broken(target.problems, graph))
        for target in report
        for graph, engine in target.engines.engines.items()
    ]
    checkpoint = bundle.manifest.source.get("checkpoint") or bundle.path.resolve().name
    text = page_text(path, f"Engines of {checkpoint}", rows, _not_built(bundle, report, asked or {}))
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _not_built(bundle: Bundle, report: Sequence[TargetReport], asked: Mapping[str, str]) -> dict[str, str]:
    """Requested targets without engines, and those that lack some, with the reason."""
    graphs = {target.engines.target: set(target.engines.engines) for target in report}
    lacking = {name: sorted(bundle.variant().graphs.keys() - found) for name, found in graphs.items()}
    return {
        **{name: reason for name, reason in asked.items() if name not in graphs},
        **{name: f"lacks {', '.join(missing)}" for name, missing in lacking.items() if missing},
    }


def read_asked(path: Path) -> dict[str, str]:
    """Read a JSON object: requested target -> its outcome. Raises BadInput for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read ({error}); expected a JSON object of targets", options=("asked",)
        ) from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadInput(f"{path} is not a JSON object of targets and their outcome; expected one", options=("asked",))
    return value


def _broken(problems: Sequence[Problem], graph: str) -> str | None:
    """Why an engine is refused on every machine; None: it is not."""
    found = [str(problem) for problem in problems if problem.broken and graph in problem.graph.split(", ")]
    return "; ".join(found) or None


def _layers(engine: EngineFile) -> list[dict[str, Any]]:
    advice = "build it again: sdrpn build BUNDLE --target NAME"
    value = read_manifest(engine.layers_path, link_roots(engine.layers_path.parent), advice, _MOST_LAYERS_BYTES)
    if not isinstance(value, list) or not all(map(_is_kernel, value)):
        raise BadBundle(f"{engine.layers_path} is not a list of kernels; {advice}")
    expected = engine.manifest.kernels if engine.manifest is not None else len(value)
    if len(value) != expected:
        raise BadBundle(f"{engine.layers_path} has {len(value)} kernels, the manifest says {expected}; {advice}")
    return value


def _is_kernel(value: Any) -> bool:
    """Whether an entry has the shown fields of a kernel: a name, and tensors with dims and, for a graph's own,
    names."""
    if not (
        isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("subgraph", 0), int)
    ):
        return False
    tensors = [*_entries(value, "inputs"), *_entries(value, "outputs")]
    return all(map(_has_dims, (*tensors, *_entries(value, "constants")))) and all(
        isinstance(tensor.get("name"), str) for tensor in tensors
    )


def _entries(kernel: dict[str, Any], side: str) -> list[Any]:
    found = kernel.get(side, [])
    return found if isinstance(found, list) else [None]


def _has_dims(tensor: Any) -> bool:
    return isinstance(tensor, dict) and isinstance(tensor.get("dims"), list)
