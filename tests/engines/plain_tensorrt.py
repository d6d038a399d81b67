"""TensorRT-RTX under TensorRT's name, for machines without TensorRT: it parses and compiles for real.

What differs between the two, and what TensorRT-RTX does not do, is imitated: strong typing as a flag, timing caches,
the level of hardware compatibility, and builder flags, which are written down. Copied into a folder as `tensorrt.py`.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as _rtx
from tensorrt_rtx_bindings import (  # noqa: F401
    BuilderFlag,
    HardwareCompatibilityLevel,
    ILogger,
    IProgressMonitor,
    MemoryPoolType,
    OnnxParser,
    ProfilingVerbosity,
)

_HERE = Path(__file__).parent
_SETTINGS = json.loads((_HERE / "settings.json").read_text()) if (_HERE / "settings.json").exists() else {}
__version__ = _SETTINGS.get("version", "10.16.1.11")


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def foreign(self) -> bool:
        return self._content.startswith(b"another GPU")

    def measure(self, what: str) -> None:
        self._content += f"{what}\n".encode()

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        lines = dict.fromkeys((*self._content.splitlines(True), *other._content.splitlines(True)))
        self._content = b"".join(lines)
        return not other.foreign

    def serialize(self) -> bytes:
        return self._content


class Config:
    def __init__(self, config: Any) -> None:
        # As a GPU of this capability would.
        config.num_compute_capabilities = 1
        config.set_compute_capability(_rtx.ComputeCapability.SM86, 0)
        self.__dict__.update(real=config, timing=None, level=HardwareCompatibilityLevel.NONE, own_flags=[])

    def __getattr__(self, name: str) -> Any:
        return self.level if name == "hardware_compatibility_level" else getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hardware_compatibility_level":
            self.__dict__["level"] = value
        elif name == "profiling_verbosity" and _SETTINGS.get("silent"):
            self.real.profiling_verbosity = ProfilingVerbosity.NONE
        else:
            setattr(self.real, name, value)

    def set_flag(self, flag: Any) -> None:
        self.own_flags.append(flag.name)

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return None if content.startswith(b"garbage") else TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.__dict__["timing"] = cache
        return not cache.foreign

    def get_timing_cache(self) -> TimingCache:
        cache: TimingCache = self.timing
        return cache


class Builder:
    def __init__(self, log: Any) -> None:
        if _SETTINGS.get("driverless"):  # as TensorRT does where there is no driver
            log.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._real = _rtx.Builder(log)

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self._real.create_network(0)

    def create_builder_config(self) -> Config:
        return Config(self._real.create_builder_config())

    def create_optimization_profile(self) -> Any:
        return self._real.create_optimization_profile()

    def build_serialized_network(self, network: Any, config: Config) -> Any:
        (_HERE / "flags.json").write_text(json.dumps(config.own_flags))
        if config.timing is not None:
            config.timing.measure(network.get_input(0).name)
        return self._real.build_serialized_network(network, config.real)
