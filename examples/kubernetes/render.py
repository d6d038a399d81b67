"""Manifests for Kubernetes, with the memory that `sdrpn plan` estimates for a bundle.

python examples/kubernetes/render.py bundle --image sdrpn:cpu --archive signs-7.sdrpn > sdrpn.yaml
python examples/kubernetes/render.py bundle --target l4 --image sdrpn:cuda --archive signs-7.sdrpn > sdrpn.yaml
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from pathlib import Path

from sdrpn import plan_memory
from sdrpn.bundle.bundle import open_bundle

TEMPLATE = Path(__file__).with_name("server.yaml")
MIB = 1 << 20
# The estimate is of the model: the interpreter, libraries, and pictures that are decoded come in addition.
SERVER_BYTES = 1_500_000_000
# Beside a GPU: libraries and pinned buffers; engines are read through the page cache.
HOST_OF_GPU_BYTES = 4_000_000_000


def main() -> int:
    """Print the manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="the bundle that the archive was packed of")
    parser.add_argument("--target", help="the GPU's target; without: a CPU")
    parser.add_argument("--image", required=True, help="container image with sdrpn and its extras serve and release")
    parser.add_argument("--archive", required=True, help="name of the signed archive in the volume")
    parser.add_argument("--cpus", type=int, default=4, help="cores of a pod (default: 4)")
    parser.add_argument("--max-batch", type=int, default=4, help="questions at once (default: 4)")
    sys.stdout.write(manifests(parser.parse_args()))
    return 0


def manifests(args: argparse.Namespace) -> str:
    """The template, filled in."""
    bundle = open_bundle(args.bundle)
    plan = plan_memory(args.bundle, target=args.target, batch=args.max_batch)
    size_bytes = sum(file.size_bytes for file in bundle.manifest.files.values())
    on_gpu = args.target is not None
    host_bytes = HOST_OF_GPU_BYTES if on_gpu else plan.needs.total_bytes + SERVER_BYTES
    memory = f"{-(-host_bytes // MIB)}Mi"
    gpu = {"nvidia.com/gpu": 1} if on_gpu else {}
    values = {
        "PLAN": f"{plan.variant} on {plan.device}: {-(-plan.needs.total_bytes // MIB)} MiB of its memory",
        "IMAGE": args.image,
        "ARCHIVE": args.archive,
        "REQUESTS": json.dumps({"cpu": args.cpus, "memory": memory, **gpu}),
        # Without a limit of CPU: what is left of a node may be used. Memory beyond the estimate is a fault.
        "LIMITS": json.dumps({"memory": memory, **gpu}),
        "NODES": json.dumps({"nvidia.com/gpu.present": "true"} if on_gpu else {"kubernetes.io/os": "linux"}),
        "TOLERATIONS": json.dumps([{"key": "nvidia.com/gpu", "operator": "Exists"}] if on_gpu else []),
        # A release and the one before, and what is being unpacked.
        "STORE": f"{-(-3 * size_bytes // MIB) + 256}Mi",
        "VOLUME": f"{-(-4 * size_bytes // MIB) + 1024}Mi",
    }
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


if __name__ == "__main__":
    sys.exit(main())
