"""SD-RPN on the edge: look at an image once, crop where it matters, answer with the detail added.

Ask a bundle about pictures:
    Session           a bundle, opened for questions
    RoiPolicy         when and how the region that a question is about is looked at again
    Answer            text, token ids, boxes, RoI map and timings of one question

Do what the verbs of the command line do, each with a function on a request:
    plan_memory       what a bundle takes in memory on a device
    PlanRequest       of which bundle, device and context
    build_engines     TensorRT engines from a bundle, each tried once where a GPU fits it
    BuildRequest      from which bundle, and for which device
    BuildOptions      what changes an engine: precision, context, dialect, ...
    diagnose_machine  what this machine can run, what is missing, and the command that installs it

What goes wrong on purpose:
    SdrpnError        the root of the tree
    BadInput          what was asked for cannot be done
    BadImage          an image cannot be read
    BadCheckpoint     a checkpoint cannot be read as the model that its config describes
    BadBundle         a bundle is incomplete, changed, or of another version
    EngineMismatch    an engine does not fit this machine or its bundle
    ContextTooLong    prompt and answer do not fit the context
    MissingDependency an optional library is not installed
    Cancelled         the answer was ended before it was complete
    RunFailed         a graph, an export or a comparison failed
    EngineNotBuilt    a library finds no kernels for a graph

Each name is imported when it is first used, so `import sdrpn` loads no library. docs/python.md shows them at work.
"""

from __future__ import annotations

import os.path

TYPE_CHECKING = False  # as type checkers know it; importing it from typing takes longer than all of this
if TYPE_CHECKING:
    from sdrpn.engines import BuildOptions
    from sdrpn.errors import (
        BadBundle,
        BadCheckpoint,
        BadImage,
        BadInput,
        Cancelled,
        ContextTooLong,
        EngineMismatch,
        EngineNotBuilt,
        MissingDependency,
        RunFailed,
        SdrpnError,
    )
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.runtime import Answer, Session
    from sdrpn.workflows.diagnosis import diagnose_machine
    from sdrpn.workflows.engine_build import BuildRequest, build_engines
    from sdrpn.workflows.memory_plan import PlanRequest, plan_memory

    __version__: str

__all__ = [
    "Answer",
    "BadBundle",
    "BadCheckpoint",
    "BadImage",
    "BadInput",
    "BuildOptions",
    "BuildRequest",
    "Cancelled",
    "ContextTooLong",
    "EngineMismatch",
    "EngineNotBuilt",
    "MissingDependency",
    "PlanRequest",
    "RoiPolicy",
    "RunFailed",
    "SdrpnError",
    "Session",
    "__version__",
    "build_engines",
    "diagnose_machine",
    "plan_memory",
]

# Where the names of __all__ come from; the others are errors.
_HOMES = {
    "Answer": "sdrpn.runtime",
    "BuildOptions": "sdrpn.engines",
    "BuildRequest": "sdrpn.workflows.engine_build",
    "PlanRequest": "sdrpn.workflows.memory_plan",
    "RoiPolicy": "sdrpn.method.roi",
    "Session": "sdrpn.runtime",
    "build_engines": "sdrpn.workflows.engine_build",
    "diagnose_machine": "sdrpn.workflows.diagnosis",
    "plan_memory": "sdrpn.workflows.memory_plan",
}

# What a checkout has beside this folder, and an installed package inside: a module of each, by which it is known.
_STAGES = {"export": "bundle_writer.py", "engines": "builder.py", "runtime": "session.py"}


def _folder_of_stages(package: str) -> list[str]:
    """Where `sdrpn.export`, `sdrpn.engines` and `sdrpn.runtime` lie if not inside the package; empty: they are inside.

    Args:
        package: this folder
    """
    above = os.path.dirname(package)
    if os.path.isdir(os.path.join(package, "runtime")):
        return []
    ours = all(os.path.isfile(os.path.join(above, *stage)) for stage in _STAGES.items())
    return [above] if ours else []


# A checkout that Python is started in hides an installed package, and has its stages beside this folder.
__path__ += [folder for folder in _folder_of_stages(os.path.dirname(__file__)) if folder not in __path__]

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Import what a name of `__all__` stands for, once."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = _version() if name == "__version__" else _imported(name)
        globals()[name] = value
        return value


def _imported(name: str) -> object:
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "sdrpn.errors")), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sdrpn")
    except PackageNotFoundError:  # imported from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
