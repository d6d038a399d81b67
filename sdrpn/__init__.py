"""SD-RPN on the edge: look at an image once, crop where it matters, answer with the detail added.

Ask a bundle about pictures:
    Session           a bundle, opened for questions
    RoiPolicy         when and how the region that a question is about is looked at again
    RoiChange         what of a model's own policy shall be another
    Turn              what was said before a question
    Answer            text, token ids, boxes, RoI map and timings of one question
    Look              where one question points: boxes with scores and the RoI map, without words
    Region            one of its boxes

Look at frames as they come:
    look_stream       where questions point, on every frame of pictures, videos and cameras
    LookRequest       which frames and which questions
    ReadOptions       which frames of a source are taken, and how long it may be silent
    Tracker           keeps the boxes of one question steady from frame to frame

Do what the verbs of the command line do, each with a function:
    run_demo          the shipped model, asked about the shipped scene
    export_bundle     a checkpoint becomes a bundle
    CalibrationData   questions that a calibration runs
    verify_bundle     how far a bundle or its engines lie from the checkpoint
    measure_rounding  what 8 and 4 bits cost a checkpoint, part by part
    QuantizeRequest   what is rounded how, and asked what
    find_heads        which attention heads point at what is asked for, and where an RPN should tap
    HeadsRequest      who is asked, and what is to be found
    ProposalRequest   the short trainings that are compared for it
    TeacherRequest    a checkpoint that answers, and the questions
    CheckpointParts   a checkpoint, and what of it is taken from elsewhere
    label_questions   a checkpoint's own attention becomes labels
    relabel_questions the same attention, labelled by another rule
    RelabelRequest    by which
    train_rpn         labels become an RPN
    TrainOptions      every number that decides its weights
    label_gate        a checkpoint's own answers become labels of when another look helps
    GateLabelRequest  who is asked, at which views, and what is right
    train_gate        these labels become a gate
    GateTrainingRequest  which labels, for which RPN
    GateOptions       every number that decides its weights
    evaluate_model    how well a model answers, with which way of looking
    inspect_bundle    what a bundle holds, its files compared with its manifest
    inspect_engines   its engines, whether they fit this machine, and their kernels
    plan_memory       what a bundle takes in memory on a device
    build_engines     TensorRT engines from a bundle, each tried once where a GPU fits it
    BuildOptions      what changes an engine: precision, context, dialect, ...
    optimize_bundle   graphs as ONNX Runtime saves them for this machine's CPU
    bench_bundle      how long answers take, stage by stage
    BenchBundle       another bundle or variant that is measured in turns
    BenchReference    the reference in PyTorch that is measured in turns
    pack_release      a bundle and its engines become one archive
    PackRequest       what is packed, and until when it may be installed
    sign_release      sign it with a key
    verify_release    check its signature and every byte
    install_release   install it beside the one that answers, try it, and switch
    InstallRequest    where, and what it has to fit
    roll_back_release answer with the release before again
    list_releases     the releases on a device, and which of them answers
    write_triton_repository  a bundle as a model repository for Triton
    TritonRequest     for which devices, and how it answers
    diagnose_machine  what this machine can run, what is missing, and the command that installs it
    check_device      this machine and a bundle on it, tried out step by step

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

import os
import sys

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
    from sdrpn.frames.thinning import ReadOptions
    from sdrpn.gate.options import GateOptions
    from sdrpn.method.policy import RoiChange
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.runtime import Answer, Look, Region, Session
    from sdrpn.runtime.tracker import Tracker
    from sdrpn.text.turns import Turn
    from sdrpn.train.options import TrainOptions
    from sdrpn.workflows.benchmark import BenchBundle, BenchReference, bench_bundle
    from sdrpn.workflows.checkpoint_parts import CheckpointParts
    from sdrpn.workflows.demonstration import run_demo
    from sdrpn.workflows.device_check import check_device
    from sdrpn.workflows.diagnosis import diagnose_machine
    from sdrpn.workflows.engine_build import build_engines
    from sdrpn.workflows.evaluate import evaluate_model
    from sdrpn.workflows.export import CalibrationData, export_bundle
    from sdrpn.workflows.gate_label import GateLabelRequest, label_gate
    from sdrpn.workflows.graph_optimization import optimize_bundle
    from sdrpn.workflows.heads import HeadsRequest, ProposalRequest, find_heads
    from sdrpn.workflows.inspection import inspect_bundle, inspect_engines
    from sdrpn.workflows.label import RelabelRequest, label_questions, relabel_questions
    from sdrpn.workflows.look import LookRequest, look_stream
    from sdrpn.workflows.memory_plan import plan_memory
    from sdrpn.workflows.quantize import QuantizeRequest, measure_rounding
    from sdrpn.workflows.release_install import InstallRequest, install_release, list_releases, roll_back_release
    from sdrpn.workflows.release_pack import PackRequest, pack_release, sign_release, verify_release
    from sdrpn.workflows.teacher import TeacherRequest
    from sdrpn.workflows.train import train_rpn
    from sdrpn.workflows.train_gate import GateTrainingRequest, train_gate
    from sdrpn.workflows.triton_repository import TritonRequest, write_triton_repository
    from sdrpn.workflows.verify import verify_bundle

    __version__: str

__all__ = [
    "Answer",
    "BadBundle",
    "BadCheckpoint",
    "BadImage",
    "BadInput",
    "BenchBundle",
    "BenchReference",
    "BuildOptions",
    "CalibrationData",
    "Cancelled",
    "CheckpointParts",
    "ContextTooLong",
    "EngineMismatch",
    "EngineNotBuilt",
    "GateLabelRequest",
    "GateOptions",
    "GateTrainingRequest",
    "HeadsRequest",
    "InstallRequest",
    "Look",
    "LookRequest",
    "MissingDependency",
    "PackRequest",
    "ProposalRequest",
    "QuantizeRequest",
    "ReadOptions",
    "Region",
    "RelabelRequest",
    "RoiChange",
    "RoiPolicy",
    "RunFailed",
    "SdrpnError",
    "Session",
    "TeacherRequest",
    "Tracker",
    "TrainOptions",
    "TritonRequest",
    "Turn",
    "__version__",
    "bench_bundle",
    "build_engines",
    "check_device",
    "diagnose_machine",
    "evaluate_model",
    "export_bundle",
    "find_heads",
    "inspect_bundle",
    "inspect_engines",
    "install_release",
    "label_gate",
    "label_questions",
    "list_releases",
    "look_stream",
    "measure_rounding",
    "optimize_bundle",
    "pack_release",
    "plan_memory",
    "relabel_questions",
    "roll_back_release",
    "run_demo",
    "sign_release",
    "train_gate",
    "train_rpn",
    "verify_bundle",
    "verify_release",
    "write_triton_repository",
]

# Where the names of __all__ come from; the others are errors.
_HOMES = {
    "Answer": "sdrpn.runtime",
    "BenchBundle": "sdrpn.workflows.benchmark",
    "BenchReference": "sdrpn.workflows.benchmark",
    "BuildOptions": "sdrpn.engines",
    "CalibrationData": "sdrpn.workflows.export",
    "CheckpointParts": "sdrpn.workflows.checkpoint_parts",
    "GateLabelRequest": "sdrpn.workflows.gate_label",
    "GateOptions": "sdrpn.gate.options",
    "GateTrainingRequest": "sdrpn.workflows.train_gate",
    "HeadsRequest": "sdrpn.workflows.heads",
    "Look": "sdrpn.runtime",
    "LookRequest": "sdrpn.workflows.look",
    "ProposalRequest": "sdrpn.workflows.heads",
    "QuantizeRequest": "sdrpn.workflows.quantize",
    "ReadOptions": "sdrpn.frames.thinning",
    "Region": "sdrpn.runtime",
    "RelabelRequest": "sdrpn.workflows.label",
    "RoiChange": "sdrpn.method.policy",
    "RoiPolicy": "sdrpn.method.roi",
    "Session": "sdrpn.runtime",
    "TeacherRequest": "sdrpn.workflows.teacher",
    "Tracker": "sdrpn.runtime.tracker",
    "TrainOptions": "sdrpn.train.options",
    "Turn": "sdrpn.text.turns",
    "bench_bundle": "sdrpn.workflows.benchmark",
    "build_engines": "sdrpn.workflows.engine_build",
    "check_device": "sdrpn.workflows.device_check",
    "diagnose_machine": "sdrpn.workflows.diagnosis",
    "evaluate_model": "sdrpn.workflows.evaluate",
    "export_bundle": "sdrpn.workflows.export",
    "find_heads": "sdrpn.workflows.heads",
    "inspect_bundle": "sdrpn.workflows.inspection",
    "inspect_engines": "sdrpn.workflows.inspection",
    "label_gate": "sdrpn.workflows.gate_label",
    "label_questions": "sdrpn.workflows.label",
    "look_stream": "sdrpn.workflows.look",
    "measure_rounding": "sdrpn.workflows.quantize",
    "optimize_bundle": "sdrpn.workflows.graph_optimization",
    "plan_memory": "sdrpn.workflows.memory_plan",
    "relabel_questions": "sdrpn.workflows.label",
    "run_demo": "sdrpn.workflows.demonstration",
    "train_gate": "sdrpn.workflows.train_gate",
    "train_rpn": "sdrpn.workflows.train",
    "TritonRequest": "sdrpn.workflows.triton_repository",
    "write_triton_repository": "sdrpn.workflows.triton_repository",
    "list_releases": "sdrpn.workflows.release_install",
    "roll_back_release": "sdrpn.workflows.release_install",
    "install_release": "sdrpn.workflows.release_install",
    "InstallRequest": "sdrpn.workflows.release_install",
    "verify_release": "sdrpn.workflows.release_pack",
    "sign_release": "sdrpn.workflows.release_pack",
    "pack_release": "sdrpn.workflows.release_pack",
    "PackRequest": "sdrpn.workflows.release_pack",
    "verify_bundle": "sdrpn.workflows.verify",
}

# ONNX Runtime 1.32 sends events to its maker, by an identifier that it keeps in ~/.cache, unless this is set before it
# is loaded. What a device looks at, and that it does, is nobody else's business; who sets it otherwise has decided.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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


class _MovedModules:
    """Finds modules by the names that they had in the release before, after Python itself found none."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        """As the import system calls it."""
        if not name.startswith(f"{__name__}."):
            return None
        from sdrpn._moved import spec_of

        return spec_of(name)


sys.meta_path.append(_MovedModules)  # type: ignore[arg-type]

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
