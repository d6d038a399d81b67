"""Devices of OpenVINO by name, how each takes graphs, and the options that graphs are compiled with.

A CPU has attention over caches in pages, which it updates in place. The other devices get each cache as an input at
every step, and return the new rows. An NPU takes graphs of fixed extents only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from openvino import opset15 as ops

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.machine import Cpu
from sdrpn.host.signal_stack import signal_stack_kept
from sdrpn.runtime.backends.failures import first_line

__all__ = ["AUTOMATIC_DEVICE", "BF16_FEATURES", "OpenVinoDevice", "device_named", "seen_devices"]

AUTOMATIC_DEVICE = "AUTO"
_NAME = re.compile(r"CPU|(GPU|NPU)(\.\d+)?|AUTO")
BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})  # as Linux names them
_NEEDS = {
    "GPU": "a GPU needs Intel's compute runtime, with libOpenCL.so.1",
    "NPU": "an NPU needs Intel's NPU driver",
}


@dataclass(frozen=True)
class OpenVinoDevice:
    """A device that is there, by OpenVINO's name for it."""

    name: str

    @property
    def paged(self) -> bool:
        """Whether caches are in pages, updated in place."""
        return self.name == "CPU"

    @property
    def fixed_extents(self) -> bool:
        """Whether a graph is compiled once more for all extents of its dynamic dimensions."""
        return self.name.startswith("NPU")

    def require_options(self, *, kv_cache: str | None, activation_block: int | None, accurate: bool) -> None:
        """Raise BadInput for an option that this device would ignore. Args: see `OpenOptions`"""
        if kv_cache is not None and not self.paged:
            raise BadInput(
                f"kv_cache is {kv_cache}, for OpenVINO's device CPU; {self.name} holds caches as the graphs declare "
                "them: leave it out",
                options=("kv-cache",),
            )
        if not self.name.startswith("NPU"):
            return
        if activation_block is not None:
            raise BadInput(
                f"activation_block is {activation_block}, for OpenVINO's devices CPU and GPU; {self.name} chooses its "
                "own types: leave it out",
                options=("activation-block",),
            )
        if accurate:
            raise BadInput(
                f"accurate is for OpenVINO's devices CPU and GPU; {self.name} chooses its own types: leave it out",
                options=("accurate",),
            )

    def require_bf16(self, cpu: Cpu) -> None:
        """Raise BadInput where products in bfloat16 are not faster: the library would imitate them."""
        if self.name != "CPU":
            raise BadInput(
                f"vision_type is bf16, for OpenVINO's device CPU; {self.name} chooses its own types: leave it out",
                options=("vision-type",),
            )
        if not BF16_FEATURES & set(cpu.features):
            raise BadInput(
                f"vision_type is bf16, and {cpu.name} has no instructions for it "
                f"({' or '.join(sorted(BF16_FEATURES))}): leave it out",
                options=("vision-type",),
            )

    def options(
        self,
        *,
        threads: int,
        half_caches: bool,
        activation_block: int | None,
        accurate: bool,
        coded_caches: bool = False,
        bf16: bool = False,
    ) -> dict[str, Any]:
        """Properties for compiling a graph.

        Args:
            half_caches: the graph declares them in fp16
            activation_block: activations that share a scale where they meet quantised matrices; 0: they stay floats;
                None: the device decides
            coded_caches: hold them in 8 bits, each row of a head with a scale and an offset
            bf16: compute in bfloat16, on a CPU; see `require_bf16`
            accurate: compute in fp32 where the device's own choice is another type
        """
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.name == "CPU":
            options |= {
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                # As the graph declares them, although the rest is computed in fp32: half the bytes of each step.
                "KV_CACHE_PRECISION": "f16" if half_caches else "f32",
            }
            if coded_caches:
                # By row: by channel, rows would be coded again as their block fills up, and a prefix would not stay.
                options |= {"KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
        elif accurate and self.name.startswith("GPU"):
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if activation_block is not None and not self.name.startswith("NPU"):
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = activation_block
        return options


def device_named(core: openvino.Core, name: str) -> OpenVinoDevice:
    """The device of this name; AUTO: the one that OpenVINO itself takes here.

    Raises: BadInput for a name that is none, or of a device that is not there
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"device {name!r} is none of OpenVINO's; expected CPU, GPU, GPU.1, NPU or AUTO")
    if name == AUTOMATIC_DEVICE:
        return OpenVinoDevice(_automatic(core))
    seen = tuple(core.available_devices)
    # Of a single device the number may be left out, or said.
    if name not in seen and name.removesuffix(".0") not in seen and f"{name}.0" not in seen:
        kind = name.partition(".")[0]
        reason = f" ({_NEEDS[kind]})" if kind in _NEEDS and not any(each.startswith(kind) for each in seen) else ""
        raise BadInput(
            f"OpenVINO sees no device {name} on this machine{reason}; expected {' or '.join((*seen, AUTOMATIC_DEVICE))}"
        )
    return OpenVinoDevice(name)


def seen_devices() -> tuple[str, ...]:
    """The devices that OpenVINO can use here, with their own names where they have one."""
    core = openvino.Core()
    with signal_stack_kept():
        return tuple(f"{name}{_full_name(core, name)}" for name in core.available_devices)


def _full_name(core: openvino.Core, name: str) -> str:
    try:
        return f" ({str(core.get_property(name, 'FULL_DEVICE_NAME')).strip()})"
    except RuntimeError:  # a device without that property
        return ""


def _automatic(core: openvino.Core) -> str:
    """The device that AUTO takes for a small model, once it has decided. Raises RunFailed where it finds none."""
    value = ops.parameter([1], np.float32)
    model = openvino.Model([ops.relu(value)], [value])
    try:
        compiled = core.compile_model(model, AUTOMATIC_DEVICE, {"ENABLE_STARTUP_FALLBACK": False})
        return str(compiled.get_property("EXECUTION_DEVICES")[0])
    except Exception as error:  # OpenVINO raises RuntimeError and its subclasses
        raise RunFailed(
            f"OpenVINO's AUTO could take no device here: {first_line(error)}; name one, such as CPU"
        ) from error
