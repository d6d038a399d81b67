"""What to try next where TensorRT cannot build an engine for a fused graph. Builds nothing itself.

TensorRT supports attention as one operator from 10.15 on, but not with a kernel for every shape on every GPU. It can
then build attention from primitive operators, if the network allows that; and the dialect `primitive` does not contain
the operator. Both were compiled with TensorRT-RTX, not with plain TensorRT.
"""

from __future__ import annotations

from sdrpn.bundle.engine_manifest import engine_paths
from sdrpn.bundle.shipped import export_advice
from sdrpn.engines.options import chosen_graphs
from sdrpn.engines.plan import EnginePlan, replanned
from sdrpn.errors import EngineNotBuilt

__all__ = ["may_decompose", "primitive_instead"]


def may_decompose(plan: EnginePlan, graph: str, decomposed: frozenset[str]) -> bool:
    """Whether a graph can be tried again with attention decomposed."""
    return _falls_back(plan) and graph not in decomposed


def primitive_instead(plan: EnginePlan, error: EngineNotBuilt) -> EnginePlan:
    """The plan for the same precision in the dialect `primitive`.

    The engines of a target must match, so all graphs change with the one that failed.

    Raises: EngineNotBuilt where the bundle has no such variant, with the command that adds it
    """
    if not _falls_back(plan):
        raise error
    name = f"primitive-{plan.variant.precision}"
    variant = plan.bundle.manifest.variants.get(name)
    if variant is None:
        advice = export_advice(plan.bundle.path, f"--dialect primitive --precision {plan.variant.precision}")
        raise EngineNotBuilt(f"{error}; {plan.bundle.path} has no {name} to build instead: {advice}") from error
    planned = {engine.graph.name for engine in plan.engines}
    names = [
        graph
        for graph in chosen_graphs(plan.bundle.spec, None)
        if graph in planned or engine_paths(plan.bundle.path, plan.target.name, graph)[1].exists()
    ]
    return replanned(plan, variant, names, str(error))


def _falls_back(plan: EnginePlan) -> bool:
    return plan.target.flavour == "tensorrt" and plan.variant.dialect == "fused"
