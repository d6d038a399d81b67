"""Properties of OpenVINO that are known before it is imported."""

from __future__ import annotations

import dataclasses
import platform
from types import ModuleType

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.memory import MemoryNeeds, cpu_needs
from sdrpn.bundle.shipped import export_advice
from sdrpn.errors import BadInput, MissingDependency, SdrpnError
from sdrpn.host.interrupt import import_library
from sdrpn.host.libraries import VersionOf, install_command, installed_version, read_extras
from sdrpn.host.machine import Machine
from sdrpn.host.native_modules import native_module
from sdrpn.host.threads import SMALL_MATRIX
from sdrpn.runtime.backends.info import BackendInfo, MemoryRequest, OpenOptions, Readiness
from sdrpn.runtime.backends.runner import Backend

__all__ = [
    "MOST_COPIED_BYTES",
    "OPENVINO",
    "STEPPED",
    "STEPS_MODULE",
    "has_fast_steps",
    "is_faster",
    "openvino_version",
]

_NAME, _CPU = "openvino", "CPU"
STEPS_MODULE = "_native_steps"
# Where it was measured to be faster, as platform.machine() calls it.
_MEASURED = ("x86_64", "AMD64")
# The process without a model: with 17 MB of weights and caches of 2, an answer took 183 MB.
_PROCESS_BYTES = 170_000_000
# 0.4B in INT4, with head, RPN and tower in fp16: 2.4 GB anonymous after an answer, where ONNX Runtime took 1.5.
_WEIGHT_COPIES = 2
# The most that a graph's matrices take for a copy of them to be made unasked: those of 7B in 4 bits take 1.7 GB.
MOST_COPIED_BYTES = 500_000_000
STEPPED = (
    "trunk",
    "tail",
)  # graphs that a decode step runs; their caches may be in 8 bits, the RPN's map chooses crops
# Of a cache in 8 bits, beside the codes of a row of a head: its scale and its offset, in fp32.
_ROW_EXTRA_BYTES = 8


def is_faster(bundle: Bundle, variant: str | None, version_of: VersionOf = installed_version) -> bool:
    """Whether it is installed, can run the variant, and answers sooner than ONNX Runtime: see docs/cpu.md.

    Small models spend their time around the matrices, where ONNX Runtime is quicker.

    Args: variant: None: any
    """
    variants = bundle.manifest.variants
    if platform.machine() not in _MEASURED:
        return False
    if bundle.spec.llm.largest_matrix < SMALL_MATRIX or (variant is not None and variant not in variants):
        return False
    if not any(not _is_refused(each) for name, each in variants.items() if variant in (None, name)):
        return False
    return read_extras(version_of=lambda name: version_of(name) if name == _NAME else None)[_NAME].complete


def has_fast_steps(native: ModuleType | None) -> bool:
    """Whether native products are ahead of the library's: not where they are written number by number.

    Args: native: `sdrpn._native_steps`
    """
    return native is not None and native.instructions() != "plain"


def openvino_version() -> str:
    """The installed version. Raises: MissingDependency where it is not installed"""
    version = installed_version(_NAME)
    if version is None:
        raise MissingDependency(f"OpenVINO is not installed; install it: {install_command(_NAME)}")
    return version


def _open(options: OpenOptions) -> Backend:
    try:
        import_library("openvino")
    except ImportError as error:
        raise MissingDependency(
            f"backend {_NAME} needs OpenVINO, which cannot be imported ({' '.join(str(error).split())}); install it: "
            f"{install_command('openvino')}"
        ) from error
    from sdrpn.runtime.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(
        _NAME,
        options.threads,
        options.largest_matrix,
        device=options.device_name or _CPU,
        accurate=options.accurate,
        activation_block=options.activation_block,
        kv_cache=options.kv_cache,
        decode_copy=options.decode_copy,
        vision_type=options.vision_type,
    )


def _probe(machine: Machine, version_of: VersionOf) -> Readiness:
    extra = read_extras(version_of=version_of)[_NAME]
    if not extra.complete:
        return Readiness(False, f"missing: {', '.join(extra.missing)}", extra.command)
    try:
        import_library("openvino")
        from sdrpn.runtime.backends.openvino_device import seen_devices

        devices = seen_devices()
    except (ImportError, RuntimeError) as error:
        reason = f"openvino {version_of(_NAME)} cannot be imported ({' '.join(str(error).split())})"
        return Readiness(False, f"{reason}; reinstall it", extra.command)
    automatic = "auto takes it, except for small models" if machine.arch in _MEASURED else "auto does not take it here"
    return Readiness(True, f"openvino {version_of(_NAME)} on {', '.join(devices)}; {automatic}")


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
    """As with ONNX Runtime, but floats are there twice: as converted from the graph, and as kernels pack them.

    Of graphs that were saved for this machine they are mapped, and there once.
    """
    mapped = request.mapped_bytes
    needs = cpu_needs(
        bundle,
        variant,
        context=request.context,
        batch=request.batch,
        mapped_bytes=mapped,
        process_bytes=_PROCESS_BYTES,
        prefill_rows=None,  # it takes them at once
        each_keeps=True,  # at 3B, a prefill of 400 rows added 133 MB to the trunk and 123 MB to the tail, which stayed
        row_extra_bytes=None if request.kv_cache is None else _ROW_EXTRA_BYTES,
    )
    copies = 1 if mapped is not None else _WEIGHT_COPIES
    copied = _copied_bytes(bundle, variant, request.decode_copy)
    return dataclasses.replace(needs, weights_bytes=copies * needs.weights_bytes + copied)


def _copied_bytes(bundle: Bundle, variant: Variant, asked: bool | None) -> int:
    """What decode steps have of their own."""
    if asked is False or not has_fast_steps(native_module(STEPS_MODULE)):
        return 0
    sizes = [
        sum(bundle.manifest.files[file].size_bytes for file in graph.weights)
        for name, graph in variant.graphs.items()
        if name in STEPPED and variant.numbers.bits < 32
    ]
    return sum(size for size in sizes if asked or size <= MOST_COPIED_BYTES)


OPENVINO = BackendInfo(
    name=_NAME,
    library="OpenVINO",
    purpose="ask, with OpenVINO",
    runs="graphs",
    on="cpu",
    probe=_probe,
    preference=_preference,
    refuses=_refuses,
    needs=_memory,
    open=_open,
    scale_bytes=4,  # 37 MB more for blocks of 32 than of 128, of 101 MB of codes: fp32 as converted and as packed
    takes=frozenset({"device_name", "activation_block", "kv_cache", "decode_copy", "vision_type"}),
)
