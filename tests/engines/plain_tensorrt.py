"""TensorRT-RTX under TensorRT's name, for machines without TensorRT: it parses and compiles for real.

What differs between the two, and what TensorRT-RTX does not do, is imitated: strong typing as a flag, timing caches,
the level of hardware compatibility, builder flags, which are written down, the form of the listing of kernels, and what
is refused: LLM operators by the parser before 10.15, attention that has no kernel ("no_attention": whole, in parts, or
"crash"). Copied into a folder as `tensorrt.py`; `settings.json` beside it says what it is like.
"""

from __future__ import annotations

import enum
import json
import os
import signal
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as _rtx
from tensorrt_listing import as_listed  # type: ignore[import-not-found]  # tests/engines/listing.py, copied too
from tensorrt_rtx_bindings import (  # noqa: F401
    BuilderFlag,
    HardwareCompatibilityLevel,
    IAttentionOutputLayer,
    ILogger,
    IProgressMonitor,
    LayerType,
    MemoryPoolType,
    ProfilingVerbosity,
)

_HERE = Path(__file__).parent
_SETTINGS = json.loads((_HERE / "settings.json").read_text()) if (_HERE / "settings.json").exists() else {}
__version__ = _SETTINGS.get("version", "10.16.1.11")
_LLM_OPERATORS = ("TensorScatter", "RMSNormalization", "RotaryEmbedding")


class Log(ILogger):  # type: ignore[misc]
    """Passes on what the library says, the listing in TensorRT's form."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log

    def log(self, severity: Any, message: str) -> None:
        text = "\n".join(map(as_listed, message.splitlines())) if ", LayerType: " in message else message
        self._log.log(severity, text)


class ParserError:
    def __init__(self, operator: str) -> None:
        self._operator = operator

    def node_operator(self) -> str:
        return self._operator

    def node_name(self) -> str:
        return f"{self._operator}_node"

    def desc(self) -> str:
        return "No importer registered for op"


class OnnxParser:
    def __init__(self, network: Any, log: Any) -> None:
        self._log = Log(log)
        self._real = _rtx.OnnxParser(network, self._log)
        self._refusal: ParserError | None = None

    def parse(self, content: bytes, path: str) -> bool:
        version = tuple(int(part) for part in __version__.split(".")[:2])
        unknown = [operator for operator in _LLM_OPERATORS if version < (10, 15) and operator.encode() in content]
        self._refusal = ParserError(unknown[0]) if unknown else None
        return not unknown and bool(self._real.parse(content, path))

    @property
    def num_errors(self) -> int:
        return 1 if self._refusal is not None else int(self._real.num_errors)

    def get_error(self, index: int) -> Any:
        return self._refusal if self._refusal is not None else self._real.get_error(index)


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
        self._log = Log(log)  # the library keeps no reference
        self._real = _rtx.Builder(self._log)

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self._real.create_network(0)

    def create_builder_config(self) -> Config:
        return Config(self._real.create_builder_config())

    def create_optimization_profile(self) -> Any:
        return self._real.create_optimization_profile()

    def build_serialized_network(self, network: Any, config: Config) -> Any:
        (_HERE / "environment.json").write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))
        (_HERE / "flags.json").write_text(json.dumps(config.own_flags))
        if _has_no_kernel(network):
            self._log.log(ILogger.ERROR, "MyelinCheckException: no kernel for attention")
            return None
        if config.timing is not None:
            config.timing.measure(network.get_input(0).name)
        return self._real.build_serialized_network(network, config.real)


def _has_no_kernel(network: Any) -> bool:
    """Whether attention is in the network as this "library" has none of it."""
    attentions = []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == LayerType.ATTENTION_OUTPUT:
            layer.__class__ = IAttentionOutputLayer
            attentions.append(layer.attention)
    lacks = _SETTINGS.get("no_attention")
    if lacks == "crash" and attentions and not all(entry.decomposable for entry in attentions):
        os.kill(os.getpid(), signal.SIGSEGV)
    whole = lacks == "whole" and not all(entry.decomposable for entry in attentions)
    return bool(attentions) and (whole or lacks == "in parts")
