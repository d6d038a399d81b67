"""The Ray cluster of a script: one that is there, or one of its own on this machine for as long as the script runs."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

__all__ = ["add_cluster_arguments", "add_replica_arguments", "cluster", "cores_for"]

_LOOPBACK = "127.0.0.1"


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which cluster is used."""
    parser.add_argument("--address", help="address of a Ray cluster, or auto (default: one of its own on this machine)")
    parser.add_argument("--object-store-bytes", type=int, default=100_000_000, help="without --address")


def add_replica_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare what each of several has. Args: what: "replica", for the help"""
    parser.add_argument("--cpus", type=float, default=1, help=f"cores of a {what} (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help=f"GPUs of a {what} (default: 0)")
    parser.add_argument("--threads", type=int, help=f"threads of a {what} on a CPU (default: its cores)")


def cores_for(options: argparse.Namespace) -> int:
    """Cores of a cluster of a job: those of its models, and two for the tasks of Ray Data beside them."""
    models: int = math.ceil(options.replicas * options.cpus)
    return max(os.cpu_count() or 1, models + 2)


@contextmanager
def cluster(options: argparse.Namespace, host: str = _LOOPBACK, **own: Any) -> Iterator[None]:
    """Connected in the block, with the modules of this folder.

    Args:
        options: with what `add_cluster_arguments` declares
        host: where a cluster of its own is reached
        own: further arguments of `ray.init` for it
    """
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent.resolve())}}
    if options.address:
        ray.init(address=options.address, runtime_env=environment)
    else:
        ray.init(
            object_store_memory=options.object_store_bytes,
            include_dashboard=False,
            runtime_env=environment,
            _node_ip_address=_LOOPBACK if host == _LOOPBACK else None,
            **own,
        )
    try:
        yield
    finally:
        ray.shutdown()
