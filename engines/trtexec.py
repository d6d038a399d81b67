"""The same builds as commands for trtexec, TensorRT's own tool, for experiments. Runs nothing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator

from sdrpn.bundle.engine_manifest import engine_paths
from sdrpn.engines.plan import EnginePlan, PlannedEngine
from sdrpn.engines.profiles import Shapes, shapes_of

__all__ = ["trtexec_script"]

_TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
_VERBOSITIES = {"detailed": "detailed", "names": "layer_names_only", "none": "none"}


def trtexec_script(plan: EnginePlan) -> str:
    """A shell script: for every graph, a copy with a fixed cache length, and the command that builds it."""
    return "\n".join(line for planned in plan.engines for line in _commands(plan, planned)) + "\n"


def _commands(plan: EnginePlan, planned: PlannedEngine) -> Iterator[str]:
    graph = plan.bundle.file(planned.graph.file).absolute()
    # Beside the graph: its weights are found relative to it.
    copy = graph.with_suffix(f".{'-'.join(map(str, plan.contexts))}.onnx")
    engine = engine_paths(plan.bundle.path.absolute(), plan.target.name, planned.graph.name)[0].with_suffix(
        ".trtexec.engine"
    )
    yield f"# {planned.graph.name}: {', '.join(profile.name for profile in planned.profiles)}"
    contexts = ",".join(map(str, plan.contexts))
    yield shlex.join([sys.executable, "-m", "sdrpn.engines.graph_file", str(graph), contexts, str(copy)])
    shapes = [shapes_of(profile, planned.graph.inputs) for profile in planned.profiles]
    arguments = [f"--onnx={copy}", f"--saveEngine={engine}", *_options(plan)]
    for number, extents in enumerate(shapes):
        arguments += [f"--profile={number}"] if len(shapes) > 1 else []
        arguments += [f"--{end}Shapes={_shapes(extents, index)}" for index, end in enumerate(("min", "opt", "max"))]
    yield shlex.join([_TOOLS[plan.target.flavour], *arguments, "--skipInference"])


def _options(plan: EnginePlan) -> Iterator[str]:
    options = plan.options
    if plan.target.flavour == "tensorrt":
        yield "--stronglyTyped"
    else:
        numbers = (capability.removeprefix("SM") for capability in plan.target.compute_capabilities)
        yield f"--computeCapabilities={','.join(numbers)}"
    yield f"--profilingVerbosity={_VERBOSITIES[options.verbosity]}"
    if options.opt_level is not None:
        yield f"--builderOptimizationLevel={options.opt_level}"
    if options.workspace_mb is not None:
        yield f"--memPoolSize=workspace:{options.workspace_mb}M"
    if plan.timing_cache is not None:
        yield f"--timingCacheFile={plan.timing_cache.absolute()}"
    for wanted, flag in (
        (options.weight_streaming, "--allowWeightStreaming"),
        (options.hardware_compat, "--hardwareCompatibilityLevel=ampere+"),
        (options.version_compatible, "--versionCompatible"),
        (options.refit, "--refit"),
    ):
        if wanted:
            yield flag


def _shapes(extents: Shapes, end: int) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, dims[end]))}" for name, dims in extents.items())
