"""Build all engines of a model with TensorRT-RTX, without a GPU: time, sizes, peak memory, and the gate of kernels.

python benchmarks/engine_builds.py WORK --model 7b-4+4 --precision fp16 --dialect fused >>figures.jsonl
python benchmarks/engine_builds.py WORK --model 7b-4+4 --dialect primitive --contexts 1024,4096 >>figures.jsonl
python benchmarks/engine_builds.py --table figures.jsonl

The first prints a line of JSON an engine, the second one with profiles for two contexts, the third all of them as a
table in Markdown.
WORK keeps checkpoint and bundle (10 GB for 7b-4+4); engines are removed as soon as they are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from shapes import SHAPES

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.engine_manifest import EngineManifest
from sdrpn.bundle.shipped import CHECKPOINT, RPN
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.engines import BuildOptions, Target, build_engines, plan_engines
from sdrpn.errors import SdrpnError
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host.sizes import text_from_bytes

ROOT = Path(__file__).resolve().parents[1]
GPUS = (("SM80",), ("SM86",), ("SM89",), ("SM120",), ("SM121",), ("SM86", "SM89", "SM120", "SM121"))
MAX_CONTEXT = 2048
INT4_BLOCKS = {"tiny": 16}  # 32 does not divide its MLP


def golden_checkpoint(work: Path) -> tuple[Path, Path | None]:
    """The random model that the official implementation's outputs were taken from."""
    return ROOT.parent / "shared" / "golden" / "tiny_K3T3", None


def tiny_checkpoint(work: Path) -> tuple[Path, Path | None]:
    """The small trained model."""
    return CHECKPOINT, RPN


def large_checkpoint(work: Path) -> tuple[Path, Path | None]:
    """Random weights in the layers of LLaVA-1.5-7B, of which there are four on either side of the tap."""
    path, spec = work / "7b-4+4-checkpoint", SHAPES["7b"]
    if not path.exists():
        llm = dataclasses.replace(spec.llm, layers=8)
        write_random_checkpoint(path, dataclasses.replace(spec, llm=llm, tap_layer=4), dtype="float16")
    return path, None


MODELS: dict[str, Callable[[Path], tuple[Path, Path | None]]] = {
    "golden": golden_checkpoint,
    "tiny": tiny_checkpoint,
    "7b-4+4": large_checkpoint,
}


class AnyInputs:
    """In place of a calibration, for FP8: nothing that goes into a product is above 44.8.

    What is built does not depend on the numbers.
    """

    digest = "any"

    def second_moment(self, name: str, /) -> Any:
        raise AssertionError(name)

    def largest(self, name: str, /) -> float:
        return 44.8


def bundle_of(work: Path, model: str, precision: str, dialect: str) -> Path:
    """The model's bundle with this variant in it."""
    path = work / f"{model}-bundle"
    manifest = path / "manifest.json"
    if not manifest.exists() or f"{dialect}-{precision}" not in json.loads(manifest.read_text())["variants"]:
        checkpoint, rpn = MODELS[model](work)
        calibration = AnyInputs() if precision == "fp8" else None
        options = ExportOptions(
            precision,  # type: ignore[arg-type]
            dialect,  # type: ignore[arg-type]
            block=INT4_BLOCKS.get(model, 32),
            calibration=None if calibration is None else calibration.digest,
        )
        export_bundle(checkpoint, path, options, rpn=rpn, calibration=calibration)
    return path


def target(capabilities: tuple[str, ...], precision: str, dialect: str) -> Target:
    """A device with room for anything."""
    return Target(
        name="measured",
        device="any",
        compute_capabilities=capabilities,
        flavour="tensorrt-rtx",
        tensorrt_min="1.7",
        dialect=dialect,
        precisions=(precision,),
        memory_gb=1000,
        unified_memory=False,
        built="here",
    )


def measured(
    work: Path,
    model: str,
    precision: str,
    dialect: str,
    contexts: tuple[int, ...],
    only: str | None,
    graphs: tuple[str, ...] | None,
    max_batch: int,
) -> Iterator[dict[str, Any]]:
    """A row an engine, for every kind of GPU; a row with the reason where there is none."""
    about = {"model": model, "precision": precision, "dialect": dialect}
    try:
        bundle = bundle_of(work, model, precision, dialect)
    except SdrpnError as error:
        yield {**about, "refused": str(error)}
        return
    for capabilities in (gpu for gpu in GPUS if only in (None, " ".join(gpu)) and (precision != "fp8" or has_fp8(gpu))):
        plan = plan_engines(bundle, target(capabilities, precision, dialect), BuildOptions())
        lengths = tuple(min(context, open_bundle(bundle).manifest.max_context) for context in contexts)
        for graph in [engine.graph.name for engine in plan.engines if graphs is None or engine.graph.name in graphs]:
            options = BuildOptions(
                graphs=(graph,),
                max_context=lengths[-1],
                shorter_contexts=lengths[:-1],
                max_batch=max_batch,
                kernel_gate=False,
            )
            before_s = children_processor_s()
            (built,) = build_engines(plan_engines(bundle, plan.target, options))
            processor_s = children_processor_s() - before_s
            yield {**about, "for": " ".join(capabilities), **figures(built.manifest), "processor_s": processor_s}
        shutil.rmtree(bundle / "engines")


def has_fp8(capabilities: tuple[str, ...]) -> bool:
    return all(int(capability[2:]) >= 89 for capability in capabilities)


def children_processor_s() -> float:
    """CPU seconds of all builds so far, which are child processes. Other load affects it less than the wall clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(manifest: EngineManifest) -> dict[str, Any]:
    return {
        "graph": manifest.graph,
        "weights_bytes": sum(
            source.size_bytes for name, source in manifest.sources.items() if name.startswith("weights/")
        ),
        "size_bytes": manifest.engine.size_bytes,
        "build_s": manifest.build_s,
        "peak_rss_bytes": manifest.peak_rss_bytes,
        "kernels": manifest.kernels,
        "kernel_gate": list(manifest.kernel_gate),
        "contexts": list(manifest.contexts),
        "max_batch": manifest.max_batch,
        "library": manifest.library_version,
    }


def table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line a graph and kind of build: the range over single GPUs, and several at once.

    The bound of the peak is 0.4 GB and 3.3 times the weights.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "refused" in row:
            yield f"{row['model']}, {row['dialect']}-{row['precision']}: {row['refused']}"
        else:
            single = "one" if " " not in row["for"] else "four at once"
            contexts = " and ".join(map(str, row.get("contexts", [MAX_CONTEXT])))
            groups[row["model"], f"{row['dialect']}-{row['precision']}", row["graph"], contexts, single].append(row)
    yield "| model | variant | graph | contexts | for | weights | engine | processor s | peak RSS | bound | kernels |"
    yield "|---|---|---|---|---|---:|---:|---:|---:|---:|---|"
    for key, found in groups.items():
        weights = found[0]["weights_bytes"]
        faults = {fault for row in found for fault in row["kernel_gate"]}
        cells = (
            *key[:4],
            key[4] if key[4] != "one" else f"{len(found)}, each by itself" if len(found) > 1 else found[0]["for"],
            text_from_bytes(weights),
            extent(found, "size_bytes", text_from_bytes),
            extent(found, "processor_s", lambda value: f"{value:.1f}"),
            extent(found, "peak_rss_bytes", text_from_bytes),
            text_from_bytes(int(0.4e9 + 3.3 * weights)),
            "; ".join(sorted(faults)) or "passed",
        )
        yield f"| {' | '.join(cells)} |"


def extent(rows: list[dict[str, Any]], name: str, text: Callable[[Any], str]) -> str:
    least, most = (text(end(row[name] for row in rows)) for end in (min, max))
    return least if least == most else f"{least} to {most}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?", help="folder for checkpoints and bundles")
    parser.add_argument("--model", choices=MODELS, default="golden")
    parser.add_argument("--precision", choices=("fp16", "int4", "fp8"), default="fp16")
    parser.add_argument("--dialect", choices=("fused", "primitive"), default="fused")
    parser.add_argument("--contexts", default=str(MAX_CONTEXT), metavar="N[,N]", help="several: dialect primitive")
    parser.add_argument("--only", metavar="SM89", help="for one kind of GPU instead of all")
    parser.add_argument("--max-batch", type=int, default=1, metavar="N", help="questions that are decoded together")
    parser.add_argument("--graphs", metavar="A,B", help="some of vision, trunk, rpn, tail (default: all)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print what was measured as Markdown")
    args = parser.parse_args()
    if args.table is not None:
        rows = [json.loads(line) for line in args.table.read_text().splitlines()]
        sys.stdout.writelines(f"{line}\n" for line in table(rows))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    contexts = tuple(int(context) for context in args.contexts.split(","))
    graphs = None if args.graphs is None else tuple(args.graphs.split(","))
    what = (args.model, args.precision, args.dialect, contexts, args.only, graphs, args.max_batch)
    for row in measured(args.work, *what):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
