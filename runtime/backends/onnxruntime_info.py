"""Properties of ONNX Runtime that are known before it is imported: on the CPU, and on an NVIDIA GPU."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Any

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import MemoryNeeds, cpu_needs, device_needs, graph_weights_bytes
from sdrpn.bundle.shipped import export_advice
from sdrpn.errors import BadInput, MissingDependency, SdrpnError
from sdrpn.host.interrupt import import_library
from sdrpn.host.libraries import BASE, VersionOf, install_command, installed_version, read_extras, satisfies
from sdrpn.host.machine import Machine
from sdrpn.runtime.backends.info import BackendInfo, MemoryRequest, OpenOptions, Readiness
from sdrpn.runtime.backends.runner import Backend

__all__ = ["CPU", "CUDA", "onnxruntime_providers", "onnxruntime_version", "require_release"]

# Older releases refuse to load such graphs: 1.23 does not know this opset, 1.24 has no kernel for TensorScatter.
_FIRST_RELEASE_OF_OPSET = {24: "1.25"}
_CPU_NAME, _CUDA_NAME = "onnxruntime", "onnxruntime-cuda"


# --- the library


def onnxruntime_version() -> str:
    """The installed version. Raises: MissingDependency where ONNX Runtime cannot be imported"""
    return str(_require_library(_CPU_NAME).__version__)


def onnxruntime_providers(version_of: VersionOf = installed_version) -> tuple[tuple[str, ...], str | None]:
    """The execution providers of the installed ONNX Runtime, and the problem with it, if any."""
    if version_of("onnxruntime") is None:
        return (), None
    try:
        library = import_library("onnxruntime")
        return tuple(library.get_available_providers()), None
    except (ImportError, OSError, AttributeError) as error:
        # AttributeError: after one of two conflicting wheels was removed, only an empty folder may be left.
        return (), f"ONNX Runtime is installed but cannot be used ({' '.join(str(error).split())}); reinstall it"


def _require_library(backend: str) -> Any:
    """Import ONNX Runtime. It is in the base install, but two wheels share its folder: removing one breaks both."""
    try:
        # Check an attribute: an uninstalled wheel may leave a folder that imports as an empty module.
        library = import_library("onnxruntime")
        library.InferenceSession  # noqa: B018
    except (ImportError, AttributeError) as error:
        wheel = "onnxruntime" if backend == _CPU_NAME else "onnxruntime-gpu"
        raise MissingDependency(
            f"backend {backend} needs ONNX Runtime, which cannot be imported ({' '.join(str(error).split())}); "
            f"install it again: pip install --force-reinstall {wheel}"
        ) from error
    return library


def _open(name: str, options: OpenOptions) -> Backend:
    _require_library(name)
    from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        name,
        options.threads,
        options.device,
        optimized=options.optimized,
        largest_matrix=options.largest_matrix,
        accurate=options.accurate,
    )


def _installed_release() -> str | None:
    """The installed release; None where it is missing or broken, which is reported when it is opened."""
    try:
        return onnxruntime_version()
    except MissingDependency:
        return None


# --- variants


def _release_fault(bundle: Bundle, variant: Variant) -> SdrpnError | None:
    """The error where the installed release is too old for the graphs of a variant, on any backend."""
    if _is_new_enough(variant):
        return None
    newer_python = sys.version_info < (3, 11)  # no release after 1.23 supports 3.10
    update = "Use Python 3.11 or newer" if newer_python else "Install a newer one: pip install -U onnxruntime"
    runnable = [
        other
        for other in sorted(bundle.manifest.variants.values(), key=_cpu_preference)
        if not other.for_engines_only and _is_new_enough(other)
    ]
    added = export_advice(bundle.path, f"--dialect primitive --precision {variant.precision}")
    return MissingDependency(
        f"{bundle.path} as {variant.name} has graphs of opset {variant.opset}, which ONNX Runtime runs from "
        f"{_FIRST_RELEASE_OF_OPSET[variant.opset]} on; installed is {_installed_release()}"
        f"{', of the last series for Python 3.10' if newer_python else ''}. {update}, or "
        f"{f'use the variant {runnable[0].name}' if runnable else f'add a variant of the dialect primitive: {added}'}"
    )


def require_release(bundle: Bundle, variant: Variant) -> None:
    """Raises MissingDependency where the installed release is too old for the graphs of this variant."""
    fault = _release_fault(bundle, variant)
    if fault is not None:
        raise fault


def _is_new_enough(variant: Variant) -> bool:
    first, installed = _FIRST_RELEASE_OF_OPSET.get(variant.opset), _installed_release()
    return first is None or installed is None or satisfies(installed, f">={first}")


def _kernel_fault(bundle: Bundle, variant: Variant) -> SdrpnError | None:
    """The error where ONNX Runtime has no kernels for a variant; None where it has."""
    if not variant.for_engines_only:
        return None
    other = bundle.variant()
    added = f"add a variant for ONNX Runtime: {export_advice(bundle.path, '--precision int4')}"
    return BadInput(
        f"{bundle.path} as {variant.name} is for engines only: ONNX Runtime has no kernels for {variant.precision}. "
        f"Build engines where a GPU is: {bundle.build_command()}; or "
        f"{added if other.for_engines_only else f'use the variant {other.name}'}"
    )


def _cpu_refuses(bundle: Bundle, variant: Variant) -> SdrpnError | None:
    return _kernel_fault(bundle, variant) or _release_fault(bundle, variant)


def _cpu_preference(variant: Variant) -> tuple[object, ...]:
    """Sort key: fused before primitive, then by accuracy among those that compute in fp32."""
    exactness = ("fp32", "fp16", "int8", "fp8", "int4")
    rank = exactness.index(variant.precision) if variant.precision in exactness else len(exactness)
    coded = variant.kv_cache is not None
    half = variant.computes_in_half
    return variant.for_engines_only, variant.dialect != "fused", half, coded, rank, variant.name


def _cuda_refuses(bundle: Bundle, variant: Variant) -> SdrpnError | None:
    if variant.dialect != "fused":
        return BadInput(
            f"{bundle.path} as {variant.name} cannot be used with {_CUDA_NAME}, which would copy all keys and values "
            "to the host and back for every token; use a fused variant, or add one: "
            f"{export_advice(bundle.path, '--dialect fused --precision fp16')}"
        )
    return _cpu_refuses(bundle, variant)


def _cuda_preference(variant: Variant) -> tuple[object, ...]:
    """Sort key: fp16 before fp32, and both before quantised variants."""
    precisions = ("fp16", "fp32", "int8", "int4")
    rank = precisions.index(variant.precision) if variant.precision in precisions else len(precisions)
    first = (variant.for_engines_only, variant.dialect != "fused")
    return *first, variant.for_cpu, variant.kv_cache is not None, rank, variant.name


# --- memory


def _cpu_memory(bundle: Bundle, variant: Variant, request: MemoryRequest) -> MemoryNeeds:
    return cpu_needs(bundle, variant, context=request.context, batch=request.batch, mapped_bytes=request.mapped_bytes)


def _cuda_memory(bundle: Bundle, variant: Variant, request: MemoryRequest) -> MemoryNeeds:
    """Memory as for engines, plus attention scores, which its kernels may store."""
    weights_bytes = sum(graph_weights_bytes(bundle, variant).values())
    return device_needs(
        bundle.spec,
        weights_bytes,
        context=request.context,
        batch=request.batch,
        kv_cache=variant.kv_cache,
        unfused_attention=True,
        parts=variant.parts,
    )


# --- readiness


def _probe_cpu(machine: Machine, version_of: VersionOf) -> Readiness:
    base = read_extras(version_of=version_of)[BASE]
    if not base.complete:
        return Readiness(False, f"missing: {', '.join(base.missing)}", base.command)
    if "CPUExecutionProvider" not in onnxruntime_providers(version_of)[0]:
        return Readiness(False, "ONNX Runtime has no CPU provider")
    return Readiness(True, f"onnxruntime {version_of('onnxruntime')}")


def _probe_cuda(machine: Machine, version_of: VersionOf) -> Readiness:
    if not machine.gpus and machine.jetson is None:
        return Readiness(False, "no NVIDIA GPU, or its driver is not installed")
    # Two wheels share one folder: uninstall the other one first.
    pip = [sys.executable, "-m", "pip", "uninstall", "-y"]
    install = f"{shlex.join([*pip, 'onnxruntime', 'onnxruntime-gpu'])} && {install_command('cuda')}"
    if "CUDAExecutionProvider" in onnxruntime_providers(version_of)[0]:
        fault = _cuda_fault()
        if fault is not None:
            return Readiness(False, fault, install)
        return Readiness(True, f"ONNX Runtime {version_of('onnxruntime')} with CUDA")
    if machine.jetson is not None:
        return Readiness(False, "needs an onnxruntime-gpu wheel that was built for this JetPack")
    return Readiness(False, "this ONNX Runtime has no CUDAExecutionProvider", install)


def _cuda_fault() -> str | None:
    """Why the provider would not be used although it is built in: its libraries may be missing."""
    from sdrpn.runtime.backends.onnxruntime_cuda import cuda_fault

    return cuda_fault()


CPU = BackendInfo(
    name=_CPU_NAME,
    library="ONNX Runtime",
    purpose="ask, on the CPU",
    runs="graphs",
    on="cpu",
    probe=_probe_cpu,
    preference=_cpu_preference,
    refuses=_cpu_refuses,
    needs=_cpu_memory,
    open=lambda options: _open(_CPU_NAME, options),
    scale_bytes=8,  # in fp32, and once more times the block's zero point: so kernels of x86-64 pack it with the codes
)

CUDA = dataclasses.replace(
    CPU,
    name=_CUDA_NAME,
    library="ONNX Runtime with CUDA",
    purpose="ask, on the GPU",
    on="gpu",
    probe=_probe_cuda,
    preference=_cuda_preference,
    refuses=_cuda_refuses,
    needs=_cuda_memory,
    open=lambda options: _open(_CUDA_NAME, options),
)
