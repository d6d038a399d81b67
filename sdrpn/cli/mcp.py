"""`sdrpn mcp`: a bundle as tools for agents, over the Model Context Protocol."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.cli.requests import session_fields
from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import port_number, positive_int
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.model_folders import add_bundle_argument
from sdrpn.terminal.session_arguments import add_where

HELP = "give agents tools that find and read details in pictures (MCP)"
DESCRIPTION = """\
Serve a bundle to agents over the Model Context Protocol: the tools look (where in a picture a question points), ask
(answer it, after a second look) and crop (a part at full resolution). Pictures are named by paths below one folder.

  sdrpn mcp bundle --image-root ~/Pictures
  sdrpn mcp bundle --image-root /srv/pictures --http 8321

Without --http an agent starts this command and talks to it on standard input and output. Ctrl-C ends it.
"""
_DEFAULT_HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    group = parser.add_argument_group("what it serves, and to whom")
    group.add_argument(
        "--image-root",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="folder whose pictures may be read, in it and below it; links may not lead out (default: this folder)",
    )
    group.add_argument(
        "--http",
        metavar="PORT",
        type=port_number,
        help="listen at http://HOST:PORT/mcp (streamable HTTP); 0: any free port",
    )
    group.add_argument(
        "--host",
        metavar="NAME",
        help=f"with --http: address to listen on; a public one needs --api-key-file (default: {_DEFAULT_HOST})",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help="with --http: keys, one per line; clients send one as Authorization: Bearer KEY",
    )
    group.add_argument(
        "--max-batch",
        metavar="N",
        type=positive_int,
        help="answer up to N questions at once (default: as the library and its memory allow)",
    )
    add_where(parser.add_argument_group("where it runs"), jpeg=False)


def run(args: argparse.Namespace) -> int:
    """Serve until the client goes."""
    from sdrpn.terminal.output import remark
    from sdrpn.workflows.agent_server import AgentRequest, serve_agents
    from sdrpn.workflows.question import silence_onnxruntime

    for option, value in (("host", args.host), ("api-key-file", args.api_key_file)):
        if args.http is None and value is not None:
            raise BadInput(f"--{option} goes with --http; without it the client starts this command and needs neither")
    if not args.debug:
        silence_onnxruntime()
    fields = session_fields(args) | {"host": args.host or _DEFAULT_HOST, "port": args.http}
    serve_agents(filled(AgentRequest, args, **fields), note=remark)
    return 0
