"""Modules under the names that they had in the release before: importing one warns and gives the module as it is now.

For one version. `sdrpn/__init__.py` asks `spec_of` for names that Python does not find.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "name_of", "spec_of"]

# Package that modules are in now -> their names, which stood right in the package above before.
_ROOMS = {
    "sdrpn.bundle": "cache_codes engine_manifest manifest memory optimized shipped tolerances",
    "sdrpn.host": "atomic cuda_devices escaping hub interrupt json_files json_reader libraries links listed_files "
    "machine partial placeholder power sizes suggestion",
    "sdrpn.images": "grey image picture_file picture_text resample",
    "sdrpn.method": "geometry overlay roi rope spec",
    "sdrpn.reports": "bench_report device_report engine_page table_page",
    "sdrpn.text": "chat_template template_prices template_sandbox tokenizer tokenizer_limits",
    "sdrpn.runtime.backends": "arrays external_data host_buffer kv_cache runner",
    "sdrpn.runtime.engines": "engine_set platform preflight",
    "sdrpn.runtime.pictures": "gpu_jpeg gpu_pixels jpeg picture pixels",
}
# Those that have another name now, or another package.
_RENAMED = {
    "sdrpn.conversations": "sdrpn.families.llava.conversations",
    "sdrpn.bundle_copy": "sdrpn.bundle.copy",
    "sdrpn.cli.failure": "sdrpn.terminal.failure",
    "sdrpn.cli.output": "sdrpn.terminal.output",
    "sdrpn.cli.output_file": "sdrpn.terminal.output_file",
    "sdrpn.cli.parser": "sdrpn.terminal.parser",
    "sdrpn.cli.progress": "sdrpn.terminal.progress",
    "sdrpn.cli.streams": "sdrpn.terminal.streams",
    "sdrpn.compare.signatures": "sdrpn.bundle.signatures",
    "sdrpn.demo": "sdrpn.tags",
    "sdrpn.evaluation.metrics": "sdrpn.evaluation.scores",
    "sdrpn.export.sentencepiece": "sdrpn.checkpoint.sentencepiece",
    "sdrpn.export.tokenizer": "sdrpn.checkpoint.tokenizer",
    "sdrpn.image_kind": "sdrpn.images.kind",
    "sdrpn.model.llava": "sdrpn.model.base",
    "sdrpn.prompt": "sdrpn.families.llava.former_prompt",
    "sdrpn.image_limits": "sdrpn.images.limits",
    "sdrpn.image_name": "sdrpn.images.names",
    "sdrpn.image_pixels": "sdrpn.images.pixels",
    "sdrpn.runtime.choice": "sdrpn.runtime.select",
    "sdrpn.runtime.smoke_test": "sdrpn.runtime.engines.trial_run",
}
# What only LLaVA's checkpoints need.
_LLAVA = "config fine_tune llm_config names processor_config unsupported vision_config vision_tower"
# Name of a module in the release before -> its name now.
MOVED = {
    f"{room.rpartition('.')[0]}.{name}": f"{room}.{name}" for room, names in _ROOMS.items() for name in names.split()
}
MOVED |= {f"sdrpn.checkpoint.{name}": f"sdrpn.families.llava.{name}" for name in _LLAVA.split()} | _RENAMED

# Names that went from a module that is still there: where they are now, as module:name.
_NAMES = {
    "sdrpn.method.spec": {"VisionSpec": "sdrpn.families.llava.vision_spec:VisionSpec"},
    "sdrpn.model": {"LlavaBase": "sdrpn.model:BaseModel"},
    "sdrpn.model.base": {"LlavaBase": "sdrpn.model.base:BaseModel"},
}


class _Alias(Loader):
    """Gives a module that is imported under its own name."""

    def __init__(self, name: str) -> None:
        self._module = import_module(name)
        self._spec = self._module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As the import system asks for it."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed; the import system has put the old name's spec into it meanwhile."""
        module.__spec__ = self._spec


def spec_of(name: str) -> ModuleSpec | None:
    """How to import a module by the name that it had; None where it never had that one. Warns."""
    now = MOVED.get(name)
    if now is None:
        return None
    warnings.warn(f"{name} is {now} now; the old name goes with the next version", DeprecationWarning, stacklevel=3)
    return ModuleSpec(name, _Alias(now))


def name_of(module: str, name: str) -> object:
    """What a module had under a name before that went to another module. Warns. Raises AttributeError."""
    now = _NAMES.get(module, {}).get(name)
    if now is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    place, _, own_name = now.partition(":")
    warnings.warn(
        f"{module}.{name} is {place}.{own_name} now; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(import_module(place), own_name)
