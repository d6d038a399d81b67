"""Requests of workflows that several verbs make of their arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sdrpn.terminal.arguments import filled
from sdrpn.terminal.session_arguments import DECODE_COPY, NOWHERE

if TYPE_CHECKING:
    from sdrpn.workflows.checkpoint_parts import CheckpointParts
    from sdrpn.workflows.question import EngineOptions
    from sdrpn.workflows.teacher import TeacherRequest

__all__ = ["checkpoint_parts", "session_fields", "teacher_request"]


def session_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that say what runs the bundle, where, and what is checked before."""
    return {
        "check_memory": not args.no_memory_check,
        "backend": args.backend,
        "threads": args.threads,
        "variant": args.variant,
        "target": args.target,
        "device": args.device,
        "engine_options": _engine_options(args),
        "optimized": not args.no_optimized,
        "rebuild_optimized": args.rebuild_optimized,
        "accurate": args.accurate,
        "activation_block": args.activation_block,
        "kv_cache": args.kv_cache,
        "decode_copy": DECODE_COPY[args.decode_copy],
        "vision_type": args.vision_type,
        "verify": not args.no_verify,
        "require_signed": tuple(args.require_signed),
    }


def _engine_options(args: argparse.Namespace) -> EngineOptions:
    from sdrpn.workflows.question import EngineOptions

    kept = args.runtime_cache
    return EngineOptions(
        runtime_cache_dir=None if kept == NOWHERE else kept,
        keep_runtime_cache=kept != NOWHERE,
        cuda_graph=not args.no_cuda_graph,
        device=args.device if isinstance(args.device, int) else 0,
    )


def checkpoint_parts(args: argparse.Namespace, **given: object) -> CheckpointParts:
    """The checkpoint that the arguments name, with the parts taken from elsewhere; `given` replaces some of them."""
    from sdrpn.workflows.checkpoint_parts import CheckpointParts

    return filled(CheckpointParts, args, path=args.checkpoint, **given)


def teacher_request(args: argparse.Namespace) -> TeacherRequest:
    """The model and its questions."""
    from sdrpn.workflows.teacher import TeacherRequest

    return filled(TeacherRequest, args, checkpoint=checkpoint_parts(args))
