"""What `sdrpn inspect --engines` shows: engines, whether they fit, and the kernels in them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadBundle, BadInput

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle
    from sdrpn.runtime.engines.engine_set import EngineFile, EngineSet
    from sdrpn.runtime.engines.preflight import Problem

__all__ = ["TargetReport", "engine_report", "print_report", "read_asked", "report_to_json", "write_page"]

_MOST_LAYERS_BYTES = 32 * 1024 * 1024
_NAME_LENGTH = 60  # of a kernel or tensor in the table; their ends tell them apart


@dataclass(frozen=True)
class TargetReport:
    """One target: its engines, what is wrong with them here, and their kernels by graph if they were asked for."""

    engines: EngineSet
    problems: tuple[Problem, ...]
    layers: dict[str, list[dict[str, Any]]]


def engine_report(
    bundle: Bundle, target: str | None, *, verify: bool, with_layers: bool = False
) -> tuple[TargetReport, ...]:
    """Read the manifests and compare them with this machine.

    Raises: BadInput where there is nothing to show, BadBundle for a list of kernels that cannot be read
    """
    from sdrpn.runtime.engines.engine_set import build_command, engine_set, engine_sets
    from sdrpn.runtime.engines.platform import read_platform
    from sdrpn.runtime.engines.preflight import check_engines

    sets = engine_sets(bundle) if target is None else (engine_set(bundle, target),)
    if not sets:
        raise BadInput(f"{bundle.path} has no engines; build them: {build_command(bundle)}")
    platform = read_platform()
    return tuple(
        TargetReport(
            one,
            check_engines(one, platform, verify=verify),
            {graph: _layers(engine) for graph, engine in one.engines.items()} if with_layers else {},
        )
        for one in sets
    )


def report_to_json(report: Sequence[TargetReport]) -> list[dict[str, Any]]:
    """A list of targets: engines with their manifests, problems with their parts and as a line, kernels."""
    return [
        {
            "target": one.engines.target,
            "engines": {
                graph: {
                    "path": engine.path,
                    "manifest": engine.manifest,
                    "fault": engine.fault,
                    "kernel_verdict": engine.manifest.kernel_verdict if engine.manifest is not None else None,
                }
                for graph, engine in one.engines.engines.items()
            },
            "problems": [{**dataclasses.asdict(problem), "line": str(problem)} for problem in one.problems],
            **({"layers": one.layers} if one.layers else {}),
        }
        for one in report
    ]


def print_report(report: Sequence[TargetReport]) -> None:
    """A table a target, a line a problem, and a table of kernels a graph if they were asked for."""
    from sdrpn.cli.output import print_table, print_text

    for one in report:
        print_table(
            ("graph", "size", "library", "for", "variant", "context", "batch", "kernels", "built in"),
            list(_rows(one.engines)),
            title=one.engines.target,
        )
        for graph, known in one.engines.manifests.items():
            for line in (*(() if one.layers else known.kernel_gate), *known.build_notes):
                print_text(f"{graph}: {line}")
        for problem in one.problems:
            print_text(str(problem))
        if not one.problems:
            print_text("fits this machine")
        for graph, kernels in one.layers.items():
            manifest = one.engines.engines[graph].manifest
            profiles = _profiles_of(kernels, manifest.profiles if manifest is not None else ())
            columns = ("profile", "kernel", "kind", "reads", "weights", "writes")
            rows = [(profile, *_kernel_row(kernel)) for profile, kernel in zip(profiles, kernels, strict=True)]
            print_table(columns, rows, title=_kernels_title(graph, profiles, kernels))
            for line in (manifest.kernel_gate if manifest is not None else ()) or ("gate: passed",):
                print_text(line)


def write_page(
    path: Path, bundle: Bundle, report: Sequence[TargetReport], asked: Mapping[str, str] | None = None
) -> None:
    """All engines as a page. Raises BadInput for a name that is neither .md nor .html, or cannot be written."""
    from sdrpn.host.atomic import replacing_file
    from sdrpn.reports.engine_page import PageEngine, page_text

    rows = [
        PageEngine(one.engines.target, graph, engine.manifest, engine.fault or _broken(one.problems, graph))
        for one in report
        for graph, engine in one.engines.engines.items()
    ]
    checkpoint = bundle.manifest.source.get("checkpoint") or bundle.path.resolve().name
    text = page_text(path, f"Engines of {checkpoint}", rows, _not_built(bundle, report, asked or {}))
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _not_built(bundle: Bundle, report: Sequence[TargetReport], asked: Mapping[str, str]) -> dict[str, str]:
    """Targets that somebody asked for and that have no engine, and those that lack some, with the reason."""
    graphs = {one.engines.target: set(one.engines.engines) for one in report}
    lacking = {name: sorted(bundle.variant().graphs.keys() - found) for name, found in graphs.items()}
    return {
        **{name: reason for name, reason in asked.items() if name not in graphs},
        **{name: f"lacks {', '.join(missing)}" for name, missing in lacking.items() if missing},
    }


def read_asked(path: Path) -> dict[str, str]:
    """A JSON object: target -> what became of it. Raises BadInput for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"--asked {path} cannot be read ({error}); expected a JSON object of targets") from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadInput(f"--asked {path} is no JSON object of targets and what became of them")
    return value


def _broken(problems: Sequence[Problem], graph: str) -> str | None:
    """Why an engine is refused on every machine, if it is."""
    found = [str(problem) for problem in problems if problem.broken and graph in problem.graph.split(", ")]
    return "; ".join(found) or None


def _rows(engines: EngineSet) -> Iterator[tuple[str, ...]]:
    from sdrpn.host.sizes import text_from_bytes

    for graph, manifest in engines.manifests.items():
        yield (
            graph,
            text_from_bytes(manifest.engine.size_bytes),
            f"{manifest.flavour} {manifest.library_version}",
            " ".join(manifest.compute_capabilities),
            manifest.variant,
            " ".join(map(str, manifest.contexts)),
            str(manifest.max_batch),
            manifest.kernels_text,
            f"{manifest.build_s:.1f} s",
        )


def _layers(engine: EngineFile) -> list[dict[str, Any]]:
    from sdrpn.host.links import link_roots
    from sdrpn.host.listed_files import read_manifest

    mend = "build it again: sdrpn build BUNDLE --target NAME"
    value = read_manifest(engine.layers_path, link_roots(engine.layers_path.parent), mend, _MOST_LAYERS_BYTES)
    if not isinstance(value, list) or not all(map(_is_kernel, value)):
        raise BadBundle(f"{engine.layers_path} is not a list of kernels; {mend}")
    expected = engine.manifest.kernels if engine.manifest is not None else len(value)
    if len(value) != expected:
        raise BadBundle(f"{engine.layers_path} has {len(value)} kernels, the manifest says {expected}; {mend}")
    return value


def _is_kernel(value: Any) -> bool:
    """Whether it has what is shown of a kernel."""
    try:
        _kernel_row(value)
        return isinstance(value.get("subgraph", 0), int)
    except (KeyError, TypeError, AttributeError):
        return False


def _profiles_of(kernels: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Of every kernel, the profile that it belongs to; "part 0" where the listing has other parts than profiles."""
    numbers = sorted({kernel.get("subgraph", 0) for kernel in kernels})
    known = dict(zip(numbers, names, strict=True)) if len(numbers) == len(names) else {}
    return [known.get(number, f"part {number}") for number in (kernel.get("subgraph", 0) for kernel in kernels)]


def _kernels_title(graph: str, profiles: Sequence[str], kernels: Sequence[dict[str, Any]]) -> str:
    """How many kernels of which kind each profile has."""
    parts = []
    for profile in dict.fromkeys(profiles):
        own = [
            str(kernel.get("kind", "kernel")) for one, kernel in zip(profiles, kernels, strict=True) if one == profile
        ]
        parts.append(f"{profile} {', '.join(f'{count} {kind}' for kind, count in Counter(own).most_common())}")
    return f"{graph}: {'; '.join(parts)}"


def _kernel_row(kernel: dict[str, Any]) -> tuple[str, ...]:
    reads, writes = (
        ", ".join(f"{_short(tensor['name'])} {_type_and_shape(tensor)}" for tensor in kernel.get(side, ()))
        for side in ("inputs", "outputs")
    )
    # The library numbers constants; names of scalars and vectors say nothing either.
    weights = ", ".join(_type_and_shape(one) for one in kernel.get("constants", ()) if len(one["dims"]) > 1)
    return _short(kernel["name"]), str(kernel.get("kind", "")), reads, weights, writes


def _type_and_shape(tensor: dict[str, Any]) -> str:
    return f"{tensor.get('dtype', '')} {tensor['dims']}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
