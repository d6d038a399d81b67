"""Build TensorRT engines from a bundle's graphs. Knows nothing about checkpoints or answers."""

from sdrpn.engines.builder import BuiltEngine, build_engines, require_writable
from sdrpn.engines.options import VERBOSITIES, BuildOptions, usual_context
from sdrpn.engines.plan import EnginePlan, plan_engines, target_variant
from sdrpn.engines.target import Target, read_target, read_targets
from sdrpn.engines.trtexec import trtexec_script

__all__ = [
    "VERBOSITIES",
    "BuildOptions",
    "BuiltEngine",
    "EnginePlan",
    "Target",
    "build_engines",
    "plan_engines",
    "read_target",
    "read_targets",
    "require_writable",
    "target_variant",
    "trtexec_script",
    "usual_context",
]
