"""`sdrpn serve`: a bundle over HTTP, with OpenAI's interface."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.requests import session_fields
from sdrpn.terminal.argument_types import byte_count, number_between, port_number, positive_int
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.model_folders import add_bundle_argument
from sdrpn.terminal.session_arguments import add_where

if TYPE_CHECKING:
    from sdrpn.workflows.serve import ServeRequest

HELP = "answer questions over HTTP, with OpenAI's interface"
DESCRIPTION = """\
Answer questions about pictures over HTTP: POST /v1/chat/completions as OpenAI's clients send it, and POST /v1/look
for regions without words. docs/server.md describes requests and replies.

  sdrpn serve bundle
  curl http://127.0.0.1:8000/v1/models

It listens on this machine only, unless --host names another address. Ctrl-C or SIGTERM finishes what runs and ends it;
SIGHUP opens the bundle again.
"""


_METAVARS: dict[object, str] = {str: "TEXT", Path: "PATH"}
# Option, type, default, help; None: no default is shown.
_LISTENS = (
    ("--host", str, "127.0.0.1", "address to listen on"),
    ("--port", port_number, 8000, "port to listen on; 0: any free one"),
    ("--name", str, None, "name of the model for clients (default: that of the bundle's folder)"),
)
_LOAD = (
    ("--max-batch", positive_int, None, "answer so many at once (default: 4 on a CPU, as many as the engines take)"),
    ("--max-queue", positive_int, 64, "requests that wait; further ones get status 429"),
    (
        "--max-stall-ms",
        number_between(1, math.inf),
        200,
        "divide first passes so that running answers wait about so long "
        "at most for their next token; encoding a picture is not divided",
    ),
    (
        "--cache-bytes",
        byte_count,
        None,
        "most memory for pictures asked about before (default: 256 MB on a CPU, else 0)",
    ),
    ("--timeout-s", number_between(0.001, math.inf), 600, "end an answer that takes longer, waiting included"),
    (
        "--stuck-after-s",
        number_between(0.001, math.inf),
        300,
        "a single graph that runs longer counts as stuck: /healthz fails, its answers are ended, and so is the "
        "server if that does not help within 10 s",
    ),
)
_ACCESS = (
    ("--api-key-file", Path, None, "file with keys, one a line, of which clients have to send one (default: none)"),
    ("--image-root", Path, None, "let requests name pictures below this folder as file: URLs"),
    ("--max-body-bytes", positive_int, 32 << 20, "largest request"),
    ("--max-pixels", positive_int, 50_000_000, "largest picture"),
    ("--max-new-tokens", positive_int, 1024, "longest answer that may be asked for"),
    ("--max-connections", positive_int, 512, "connections at once"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    groups = {"where it listens": _LISTENS, "how much at once": _LOAD, "who may ask, and for what": _ACCESS}
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for name, kind, default, text in options:
            text += "" if default is None else f" (default: {default})"
            group.add_argument(name, metavar=_METAVARS.get(kind, "N"), type=kind, default=default, help=text)
    group.add_argument("--allow-image-urls", action="store_true", help="fetch pictures from URLs of public addresses")
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let pages of this origin, such as https://example.org, use the server from a browser (CORS). Can be "
        "given several times (default: none but the server's own)",
    )
    group.add_argument(
        "--log-format", choices=("text", "json", "none"), default="text", help="lines on standard error (default: text)"
    )
    group.add_argument("--otlp-endpoint", metavar="URL", help="send traces there, by OpenTelemetry's OTLP over HTTP")
    add_where(parser.add_argument_group("where it runs"))


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

    return filled(ServeRequest, args, **session_fields(args), allow_origin=tuple(args.allow_origin))
