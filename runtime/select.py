"""Which library answers with a bundle: engines where some fit this machine, else ONNX Runtime. Loads nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.numerics import NUMBER_TYPES, PRECISIONS
from sdrpn.bundle.optimized import OptimizedSet, find_optimized
from sdrpn.bundle.shipped import export_advice
from sdrpn.errors import BadInput, EngineMismatch, MissingDependency
from sdrpn.host.libraries import satisfies
from sdrpn.host.machine import read_cpu
from sdrpn.runtime.backends import BACKENDS, onnxruntime_version
from sdrpn.runtime.engines.engine_set import EngineSet, build_command, engine_set, engine_sets
from sdrpn.runtime.engines.platform import read_platform
from sdrpn.runtime.engines.preflight import check_engines, require_fit

__all__ = [
    "AUTOMATIC",
    "Choice",
    "choose_backend",
    "choose_optimized",
    "mapped_weights_bytes",
    "onnxruntime_variant",
    "require_release",
]

AUTOMATIC = "auto"
# Older ones refuse to load such graphs: 1.23 knows no such opset, 1.24 has no kernel for TensorScatter.
_FIRST_RELEASE_OF_OPSET = {24: "1.25"}
# Backends of earlier releases, and what became of them.
_GONE = {
    "onnxruntime-tensorrt": "backend onnxruntime-tensorrt is gone: it compiled anew for every length of prompt; use "
    "tensorrt with the engines of sdrpn build, or onnxruntime-cuda"
}


@dataclass(frozen=True)
class Choice:
    """A backend, and the engines that it is to run."""

    backend: str
    engines: EngineSet | None = None
    note: str | None = None  # why engines that are there are not used


def choose_backend(
    bundle: Bundle,
    backend: str = AUTOMATIC,
    *,
    target: str | None = None,
    variant: str | None = None,
    device: int = 0,
    verify: bool = True,
) -> Choice:
    """What to answer with.

    Args:
        backend: one of BACKENDS, or "auto": engines where there are some that fit this machine, else ONNX Runtime
        target: whose engines; None: the first that fit
        variant: the engines must be of this one
        device: the GPU that they must fit, as CUDA numbers them
        verify: hash engines; False: large ones only where size or time are not as when they were built

    Raises:
        BadInput: an unknown backend; a target without the backend for it, or without engines
        EngineMismatch: engines were asked for, and none fit
    """
    if backend in _GONE:
        raise BadInput(_GONE[backend])
    if backend not in (AUTOMATIC, *BACKENDS):
        raise BadInput(f"backend {backend!r} is unknown; expected one of {', '.join((AUTOMATIC, *BACKENDS))}")
    if target is not None and backend not in (AUTOMATIC, "tensorrt"):
        raise BadInput(f"target {target} is about engines, which {backend} does not run; use the backend tensorrt")
    if backend == "tensorrt" or target is not None:
        return Choice("tensorrt", _fitting(bundle, target, variant, device, verify))
    if backend != AUTOMATIC:
        return Choice(backend)
    return _automatic(bundle, variant, device, verify)


def _gpu_variant(bundle: Bundle, name: str | None) -> Variant:
    """The named variant, or the one that suits a GPU best: fp16 before fp32, and both before quantised ones."""
    advice = f"add one: {export_advice(bundle.path, '--dialect fused --precision fp16')}"
    if name is None:
        variants = bundle.manifest.variants.values()
        fused = [one for one in variants if one.dialect == "fused" and not one.for_engines_only]
        if not fused:
            raise BadInput(f"{bundle.path} has no fused variant, which onnxruntime-cuda needs; {advice}")
        return min(fused, key=_gpu_order)
    chosen = bundle.variant(name)
    if chosen.dialect != "fused":
        raise BadInput(
            f"{chosen.name} is of no use with onnxruntime-cuda, which would copy all keys and values to the host and "
            f"back for every token; use a fused variant, or {advice}"
        )
    return chosen


def _gpu_order(variant: Variant) -> tuple[bool, bool, tuple[int, int, int], str]:
    numbers = variant.numbers
    form = ("dense", "integers").index(numbers.weights) if numbers.weights in ("dense", "integers") else 2
    rank = form, NUMBER_TYPES[numbers.computes].size_bytes, list(PRECISIONS).index(numbers.name)
    return variant.for_cpu, variant.kv_cache is not None, rank, variant.name


def onnxruntime_variant(
    bundle: Bundle, name: str | None = None, note: str | None = None, backend: str = BACKENDS[0]
) -> Variant:
    """What ONNX Runtime answers with: the named variant, or of those that the installed release runs the one that suits
    the CPU or, with another backend, the GPU best.

    Args:
        note: why engines that are there are not used
    Raises:
        BadInput: the variant is for engines only, or of no use on a GPU; the bundle is a release, which has no graphs
        MissingDependency: the installed ONNX Runtime is too old for it
    """
    bundle.require_graphs("to answer with ONNX Runtime", note)
    runnable = _runnable(bundle)
    if backend == "onnxruntime-cuda":
        chosen = _gpu_variant(bundle, name)
    else:
        chosen = runnable[0] if name is None and runnable else bundle.variant(name)
    _require_kernels(bundle, chosen, note)
    require_release(bundle, chosen)
    return chosen


def _require_kernels(bundle: Bundle, variant: Variant, note: str | None) -> None:
    if variant.for_engines_only:
        other = bundle.variant()
        added = f"add a variant for ONNX Runtime: {export_advice(bundle.path, '--precision int4')}"
        reason = f"; {note}" if note else ""
        raise BadInput(
            f"{bundle.path} as {variant.name} is for engines only: ONNX Runtime has no kernels for "
            f"{variant.precision}{reason}. Build engines where a GPU is: {build_command(bundle)}; or "
            f"{added if other.for_engines_only else f'use --variant {other.name}'}"
        )


def require_release(bundle: Bundle, variant: Variant) -> None:
    """Raises MissingDependency where the installed ONNX Runtime is too old for the graphs of this variant."""
    if _is_new_enough(variant):
        return
    newer_python = sys.version_info < (3, 11)  # ONNX Runtime made none for 3.10 after 1.23
    update = "Use Python 3.11 or newer" if newer_python else "Install a newer one: pip install -U onnxruntime"
    runnable = _runnable(bundle)
    added = export_advice(bundle.path, f"--dialect primitive --precision {variant.precision}")
    raise MissingDependency(
        f"{bundle.path} as {variant.name} has graphs of opset {variant.opset}, which ONNX Runtime runs from "
        f"{_FIRST_RELEASE_OF_OPSET[variant.opset]} on; installed is {_installed_onnxruntime()}"
        f"{', of the last series for Python 3.10' if newer_python else ''}. {update}, or "
        f"{f'use --variant {runnable[0].name}' if runnable else f'add a variant of the dialect primitive: {added}'}"
    )


def _runnable(bundle: Bundle) -> tuple[Variant, ...]:
    return tuple(one for one in bundle.variants_for_cpu if not one.for_engines_only and _is_new_enough(one))


def _is_new_enough(variant: Variant) -> bool:
    first, installed = _FIRST_RELEASE_OF_OPSET.get(variant.opset), _installed_onnxruntime()
    return first is None or installed is None or satisfies(installed, f">={first}")


def _installed_onnxruntime() -> str | None:
    """None where there is none, or a broken one: whoever needs it says so."""
    try:
        return onnxruntime_version()
    except MissingDependency:
        return None


def choose_optimized(
    bundle: Bundle, variant: Variant, backend: str, verify: bool = True
) -> tuple[OptimizedSet | None, str | None]:
    """The graphs that `sdrpn optimize` saved for this machine's CPU, if some fit; else why not, if some are there.

    Raises: BadBundle where their files were changed
    """
    if backend != "onnxruntime" or not (bundle.path / "optimized").is_dir():
        return None, None
    found, note = find_optimized(bundle, variant, onnxruntime_version(), read_cpu())
    if found is not None:
        found.verify(large=verify)
    return found, note


def mapped_weights_bytes(bundle: Bundle, variant: Variant) -> int | None:
    """Of the graphs that `choose_optimized` would take on a CPU; None where there are none."""
    found, _ = choose_optimized(bundle, variant, "onnxruntime", verify=False)
    return None if found is None else found.manifest.mapped_bytes


def _fitting(bundle: Bundle, target: str | None, variant: str | None, device: int, verify: bool) -> EngineSet:
    if target is not None:
        found = engine_set(bundle, target)
        require_fit(found, read_platform(device), verify=verify)
        if variant is not None and found.variant.name != variant:
            raise EngineMismatch(
                f"the engines of {target} are of variant {found.variant.name}, not {variant}; leave the variant out"
            )
        return found
    sets = engine_sets(bundle)
    if not sets:
        raise BadInput(f"{bundle.path} has no engines; build them: {build_command(bundle)}")
    platform = read_platform(device)
    for one in _of_variant(sets, variant):
        if not check_engines(one, platform, verify=verify):
            return one
    if not _of_variant(sets, variant):
        raise EngineMismatch(f"{bundle.path} has no engines of variant {variant}; leave the variant out")
    require_fit(_of_variant(sets, variant)[0], platform, verify=verify)
    raise AssertionError("unreachable: what did not fit is refused")


def _automatic(bundle: Bundle, variant: str | None, device: int, verify: bool) -> Choice:
    sets = _of_variant(engine_sets(bundle), variant)
    if not sets:
        return Choice(BACKENDS[0])
    platform = read_platform(device)
    if platform.gpu is None:  # a machine to export or test on: nothing to say about
        return Choice(BACKENDS[0])
    for one in sets:
        if not (problems := check_engines(one, platform, verify=verify)):
            return Choice("tensorrt", one)
    return Choice(BACKENDS[0], note=f"the engines of {one.target} are not used: {problems[0]}")


def _of_variant(sets: Sequence[EngineSet], variant: str | None) -> tuple[EngineSet, ...]:
    return tuple(
        one
        for one in sets
        if variant is None or all(manifest.variant == variant for manifest in one.manifests.values())
    )
