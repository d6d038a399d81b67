"""Properties of OpenVINO on a CPU that are known before it is imported."""

from __future__ import annotations

import importlib

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import MemoryNeeds, cpu_needs
from sdrpn.bundle.shipped import export_advice
from sdrpn.errors import BadInput, MissingDependency, SdrpnError
from sdrpn.host.libraries import VersionOf, install_command, read_extras
from sdrpn.host.machine import Machine
from sdrpn.runtime.backends.info import BackendInfo, MemoryRequest, OpenOptions, Readiness
from sdrpn.runtime.backends.runner import Backend

__all__ = ["OPENVINO"]

_NAME = "openvino"


def _open(options: OpenOptions) -> Backend:
    try:
        importlib.import_module("openvino")
    except ImportError as error:
        raise MissingDependency(
            f"backend {_NAME} needs OpenVINO, which cannot be imported ({' '.join(str(error).split())}); install it: "
            f"{install_command('openvino')}"
        ) from error
    from sdrpn.runtime.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(_NAME, options.threads, options.largest_matrix)


def _probe(machine: Machine, version_of: VersionOf) -> Readiness:
    extra = read_extras(version_of=version_of)["openvino"]
    if not extra.complete:
        return Readiness(False, f"missing: {', '.join(extra.missing)}", extra.command)
    return Readiness(True, f"openvino {version_of('openvino')}")


def _refuses(bundle: Bundle, variant: Variant) -> SdrpnError | None:
    """The error for a variant that would be slow, or that has no kernels."""
    if not _is_refused(variant):
        return None
    if variant.for_engines_only:
        reason = f"OpenVINO has no kernels for {variant.precision}"
    elif variant.dialect != "fused":
        reason = "which would copy all keys and values for every token"
    else:
        reason = "which would compute with all rows of its coded caches for every token"
    others = [each for each in sorted(bundle.manifest.variants.values(), key=_preference) if not _is_refused(each)]
    added = f"add a fused variant: {export_advice(bundle.path, '--dialect fused --precision int4')}"
    return BadInput(
        f"{bundle.path} as {variant.name} cannot be used with {_NAME}: {reason}; "
        f"{f'use the variant {others[0].name}' if others else added}"
    )


def _is_refused(variant: Variant) -> bool:
    return variant.dialect != "fused" or variant.kv_cache is not None or variant.for_engines_only


def _preference(variant: Variant) -> tuple[object, ...]:
    """Sort key: by accuracy among those that compute in fp32, as this library does."""
    exactness = ("fp32", "fp16", "int8", "int4")
    rank = exactness.index(variant.precision) if variant.precision in exactness else len(exactness)
    return _is_refused(variant), variant.computes_in_half, rank, variant.name


def _memory(bundle: Bundle, variant: Variant, request: MemoryRequest) -> MemoryNeeds:
    return cpu_needs(bundle, variant, context=request.context, batch=request.batch, mapped_bytes=None)


OPENVINO = BackendInfo(
    name=_NAME,
    library="OpenVINO",
    purpose="ask, on the CPU with OpenVINO",
    runs="graphs",
    on="cpu",
    probe=_probe,
    preference=_preference,
    refuses=_refuses,
    needs=_memory,
    open=_open,
)
