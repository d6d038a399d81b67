"""`sdrpn serve`: a bundle over HTTP, with OpenAI's interface."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder, filled
from sdrpn.cli.model_folders import add_model_options
from sdrpn.cli.session_arguments import add_where, session_fields
from sdrpn.terminal.argument_types import byte_count, port_number, positive_int

if TYPE_CHECKING:
    from sdrpn.workflows.serve import ServeRequest

HELP = "answer questions over HTTP, with OpenAI's interface"
DESCRIPTION = """\
Answer questions about pictures over HTTP: POST /v1/chat/completions as OpenAI's clients send it, and POST /v1/look
for regions without words. docs/server.md describes requests and replies.

  sdrpn serve bundle
  curl http://127.0.0.1:8000/v1/models

It listens on this machine only, unless --host names another address. Ctrl-C or SIGTERM finishes what runs and ends it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    group = parser.add_argument_group("where it listens")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument(
        "--port", metavar="N", type=port_number, default=8000, help="port to listen on; 0: any free one (default: 8000)"
    )
    group.add_argument("--name", help="name of the model for clients (default: that of the bundle's folder)")
    group = parser.add_argument_group("how much at once")
    group.add_argument(
        "--max-batch",
        metavar="N",
        type=positive_int,
        help="answer so many questions at once (default: 4 on a CPU, as many as the engines take on a GPU)",
    )
    group.add_argument(
        "--cache-bytes",
        metavar="N",
        type=byte_count,
        help="most memory for pictures that were asked about before (default: 256 MB on a CPU, else 0)",
    )
    add_where(parser.add_argument_group("where it runs"))
    add_model_options(parser, "bundle")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    from sdrpn.host.service_manager import service_manager
    from sdrpn.terminal.output import remark, warn
    from sdrpn.workflows.question import silence_onnxruntime
    from sdrpn.workflows.serve import serve

    if not args.debug:
        silence_onnxruntime()
    manager = service_manager(os.environ, os.getpid())
    serve(_request(args), note=warn, started=lambda url: remark(f"listening on {url}"), manager=manager)
    return 0


def _request(args: argparse.Namespace) -> ServeRequest:
    from sdrpn.workflows.serve import ServeRequest

    return filled(ServeRequest, args, **session_fields(args))
