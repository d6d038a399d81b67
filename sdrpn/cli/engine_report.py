"""What `sdrpn inspect --engines` prints: engines, whether they fit, and the kernels in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdrpn.workflows.inspection import EngineSet, TargetReport

__all__ = ["print_report"]

_NAME_LENGTH = 60  # of a kernel or tensor in the table, which keeps the end of longer names


def print_report(report: Sequence[TargetReport]) -> None:
    """Print a table per target, a line per problem and, on request, a table of kernels per graph."""
    from sdrpn.terminal.output import print_table, print_text

    for target in report:
        print_table(
            ("graph", "size", "library", "for", "variant", "context", "batch", "kernels", "built in"),
            list(_rows(target.engines)),
            title=target.engines.target,
        )
        for graph, known in target.engines.manifests.items():
            for line in (*(() if target.layers else known.kernel_gate), *known.build_notes):
                print_text(f"{graph}: {line}")
        for problem in target.problems:
            print_text(str(problem))
        if not target.problems:
            print_text("fits this machine")
        for graph, kernels in target.layers.items():
            manifest = target.engines.engines[graph].manifest
            profiles = _profiles_of(kernels, manifest.profiles if manifest is not None else ())
            columns = ("profile", "kernel", "kind", "reads", "weights", "writes")
            rows = [(profile, *_kernel_row(kernel)) for profile, kernel in zip(profiles, kernels, strict=True)]
            print_table(columns, rows, title=_kernels_title(graph, profiles, kernels))
            for line in (manifest.kernel_gate if manifest is not None else ()) or ("gate: passed",):
                print_text(line)


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


def _profiles_of(kernels: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """The profile of every kernel; "part 0" if the listing is not divided by profile."""
    numbers = sorted({kernel.get("subgraph", 0) for kernel in kernels})
    known = dict(zip(numbers, names, strict=True)) if len(numbers) == len(names) else {}
    return [known.get(number, f"part {number}") for number in (kernel.get("subgraph", 0) for kernel in kernels)]


def _kernels_title(graph: str, profiles: Sequence[str], kernels: Sequence[dict[str, Any]]) -> str:
    """How many kernels of which kind each profile has."""
    parts = []
    for profile in dict.fromkeys(profiles):
        own = [
            str(kernel.get("kind", "kernel"))
            for owner, kernel in zip(profiles, kernels, strict=True)
            if owner == profile
        ]
        parts.append(f"{profile} {', '.join(f'{count} {kind}' for kind, count in Counter(own).most_common())}")
    return f"{graph}: {'; '.join(parts)}"


def _kernel_row(kernel: dict[str, Any]) -> tuple[str, ...]:
    reads, writes = (
        ", ".join(f"{_short(tensor['name'])} {_type_and_shape(tensor)}" for tensor in kernel.get(side, ()))
        for side in ("inputs", "outputs")
    )
    # The library numbers constants; names of scalars and vectors carry no information.
    weights = ", ".join(
        _type_and_shape(constant) for constant in kernel.get("constants", ()) if len(constant["dims"]) > 1
    )
    return _short(kernel["name"]), str(kernel.get("kind", "")), reads, weights, writes


def _type_and_shape(tensor: dict[str, Any]) -> str:
    return f"{tensor.get('dtype', '')} {tensor['dims']}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
