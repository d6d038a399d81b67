"""What `sdrpn inspect --engines` shows: engines, whether they fit, and the kernels in them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadBundle, BadInput

if TYPE_CHECKING:
    from sdrpn.bundle import Bundle
    from sdrpn.runtime.engine_set import EngineFile, EngineSet
    from sdrpn.runtime.preflight import Problem

__all__ = ["TargetReport", "engine_report", "print_report", "report_to_json", "write_page"]

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
    from sdrpn.runtime.engine_set import build_command, engine_set, engine_sets
    from sdrpn.runtime.platform import read_platform
    from sdrpn.runtime.preflight import check_engines

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
                graph: {"path": engine.path, "manifest": engine.manifest, "fault": engine.fault}
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
        for problem in one.problems:
            print_text(str(problem))
        if not one.problems:
            print_text("fits this machine")
        for graph, kernels in one.layers.items():
            title = f"{graph}: {', '.join(f'{count} {kind}' for kind, count in _kinds(kernels))}"
            print_table(
                ("kernel", "kind", "reads", "weights", "writes"), [_kernel_row(k) for k in kernels], title=title
            )


def write_page(path: Path, bundle: Bundle, report: Sequence[TargetReport]) -> None:
    """All engines as a page. Raises BadInput for a name that is neither .md nor .html, or cannot be written."""
    from sdrpn.atomic import replacing_file
    from sdrpn.engine_page import PageEngine, page_text

    rows = [
        PageEngine(one.engines.target, graph, engine.manifest, engine.fault)
        for one in report
        for graph, engine in one.engines.engines.items()
    ]
    checkpoint = bundle.manifest.source.get("checkpoint") or bundle.path.resolve().name
    text = page_text(path, f"Engines of {checkpoint}", rows)
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _rows(engines: EngineSet) -> Iterator[tuple[str, ...]]:
    from sdrpn.sizes import text_from_bytes

    for graph, manifest in engines.manifests.items():
        yield (
            graph,
            text_from_bytes(manifest.engine.size_bytes),
            f"{manifest.flavour} {manifest.library_version}",
            " ".join(manifest.compute_capabilities),
            manifest.variant,
            str(manifest.max_context),
            str(manifest.max_batch),
            "; ".join(manifest.kernel_gate) or f"{manifest.kernels}, passed",
            f"{manifest.build_s:.1f} s",
        )


def _layers(engine: EngineFile) -> list[dict[str, Any]]:
    mend = "build it again: sdrpn build BUNDLE --target NAME"
    try:
        value = json.loads(engine.layers_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadBundle(f"{engine.layers_path} cannot be read ({error.strerror}); {mend}") from error
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{engine.layers_path} is not a list of kernels ({error}); {mend}") from error
    if not isinstance(value, list) or not all(isinstance(one, dict) and "name" in one for one in value):
        raise BadBundle(f"{engine.layers_path} is not a list of kernels; {mend}")
    expected = engine.manifest.kernels if engine.manifest is not None else len(value)
    if len(value) != expected:
        raise BadBundle(f"{engine.layers_path} has {len(value)} kernels, the manifest says {expected}; {mend}")
    return value


def _kinds(kernels: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    return Counter(str(kernel.get("kind", "kernel")) for kernel in kernels).most_common()


def _kernel_row(kernel: dict[str, Any]) -> tuple[str, ...]:
    reads, writes = (
        ", ".join(f"{_short(tensor['name'])} {_type_and_shape(tensor)}" for tensor in kernel.get(side, ()))
        for side in ("inputs", "outputs")
    )
    # The library numbers constants; names of scalars and vectors say nothing either.
    weights = ", ".join(_type_and_shape(tensor) for tensor in kernel.get("constants", ()) if len(tensor["dims"]) > 1)
    return _short(kernel["name"]), str(kernel.get("kind", "")), reads, weights, writes


def _type_and_shape(tensor: dict[str, Any]) -> str:
    return f"{tensor.get('dtype', '')} {tensor['dims']}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
