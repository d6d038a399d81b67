"""`sdrpn label` on many machines with Ray: every process is one part of the run (`sdrpn label --shard`).

    python examples/ray/label.py CHECKPOINT --data qa.jsonl --images images --heads official-7b --out labels

The folder is that of `sdrpn label`, on a disk that all machines share; a run that was killed goes on with --resume, and
with what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the module beside this one

import installed  # noqa: F401  # before Ray
import ray
from cluster import add_cluster_arguments, add_replica_arguments, cluster, cores_for

from sdrpn import SdrpnError
from sdrpn.host.part import Part
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.label import LabelRequest, label
from sdrpn.workflows.teacher import TeacherRequest


def run(options: argparse.Namespace) -> int:
    """Let every part record its files; the last one makes labels of all."""
    asked = TeacherRequest(
        CheckpointParts(options.checkpoint),
        options.data,
        options.images,
        max_new_tokens=options.max_new_tokens,
        precision=options.precision,
        device=options.device,
        threads=options.threads,
    )
    whole = LabelRequest(asked, options.heads, options.out.resolve(), options.resume, options.shard_questions)
    worker = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)(label)
    parts = [Part(number, options.replicas) for number in range(1, options.replicas + 1)]
    found = ray.get([worker.remote(dataclasses.replace(whole, part=part)) for part in parts])
    done = next(labelled for labelled in found if labelled.is_complete)
    print(f"{done.out}: {done.counts.labelled} labelled", file=sys.stderr)
    return 0


def main() -> int:
    """As the command line says."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("checkpoint", type=Path)
    for name in ("data", "images", "out"):
        found.add_argument(f"--{name}", type=Path, required=True, help="as `sdrpn label`")
    found.add_argument("--heads", required=True, help="as `sdrpn label`")
    found.add_argument("--resume", action="store_true", help="go on with a run with the same settings")
    found.add_argument("--max-new-tokens", type=int, default=128)
    found.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    found.add_argument("--device", default="cpu")
    found.add_argument("--shard-questions", type=int, default=256)
    found.add_argument("--replicas", type=int, default=1, help="models (default: 1)")
    add_replica_arguments(found, "model")
    add_cluster_arguments(found)
    options = found.parse_args()
    if options.threads is None:
        options.threads = max(1, int(options.cpus))
    try:
        with cluster(options, num_cpus=cores_for(options)):
            return run(options)
    except SdrpnError as error:
        print(f"label: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
