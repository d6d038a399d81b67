"""`sdrpn export-triton`: a model repository for Triton. Its JSON is a TritonRepository of sdrpn.workflows."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.terminal.argument_types import positive_int
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.model_folders import add_bundle_argument

HELP = "write a model repository for Triton's Python backend"
DESCRIPTION = """\
Write the folder of a model for Triton's Python backend: configuration, model.py, a warm-up request, and the bundle. The
package has to be installed in the Python of that backend. docs/triton.md.

  sdrpn export-triton bundle --out models/street-signs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the model in a repository")
    parser.add_argument("--kind", choices=("cpu", "gpu"), default="cpu", help="where instances run (default: cpu)")
    parser.add_argument("--instances", metavar="N", type=positive_int, default=1, help="sessions (default: 1)")
    parser.add_argument("--max-batch", metavar="N", type=positive_int, help="questions at once, in each session")
    parser.add_argument("--target", metavar="NAME", help="run the engines of this target")
    parser.add_argument(
        "--no-copy", dest="copy", action="store_false", help="name the bundle where it lies, without a copy"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Write and print."""
    from sdrpn.terminal.output import print_json, print_text
    from sdrpn.workflows.triton_repository import TritonRequest, write_triton_repository

    found = write_triton_repository(filled(TritonRequest, args))
    if args.json:
        print_json(found)
    else:
        print_text(f"{found.path}: model {found.name}, for tritonserver --model-repository {args.out.parent}")
    return 0
