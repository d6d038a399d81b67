"""A bundle as tools for agents: opened once, and served until the client goes or a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdrpn import __version__
from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadInput
from sdrpn.host.api_keys import read_api_keys
from sdrpn.host.libraries import importing_extra
from sdrpn.images.image_root import ImageRoot
from sdrpn.workflows.opened_session import SessionRequest, opened_session, require_memory, require_tokenizer

__all__ = ["AgentRequest", "serve_agents"]


@dataclass(frozen=True)
class AgentRequest(SessionRequest):
    """A bundle, the folder of its pictures, and how it is reached. The fields from `backend` on are those of
    `Session.open`.

    port: None: standard input and output, for one client that starts this process; a number: streamable HTTP, 0 for any
    free port. api_key_file: keys that HTTP clients must send, one per line.
    """

    bundle: Path | str
    image_root: Path
    host: str = "127.0.0.1"
    port: int | None = None
    api_key_file: Path | None = None
    max_batch: int | None = None


def serve_agents(request: AgentRequest, note: Callable[[str], None] = lambda text: None) -> None:
    """Open the bundle and serve `look`, `ask` and `crop` over the Model Context Protocol.

    Args: note: called with the address of an HTTP server, and with warnings
    Raises: BadInput, MissingDependency or RunFailed for what cannot be opened or listened on
    """
    with importing_extra("mcp", "sdrpn mcp"):
        from sdrpn.runtime.agent.server import agent_server
        from sdrpn.runtime.agent.tools import PictureTools
        from sdrpn.runtime.agent.transports import HttpAddress, serve_http, serve_stdio
    root = ImageRoot(request.image_root)
    keys = None if request.api_key_file is None else read_api_keys(request.api_key_file)
    if request.port is None and keys is not None:
        raise BadInput("API keys are for HTTP; standard input and output have one client, which needs none")
    address = None if request.port is None else HttpAddress(request.host, request.port, keys)
    bundle = open_bundle(bundle_path(request.bundle))
    require_tokenizer(bundle)
    if request.check_memory:
        require_memory(bundle, request)
    with opened_session(bundle, request, max_batch=request.max_batch, note=note) as session:
        if session.backend_note is not None:
            note(session.backend_note)
        server = agent_server(PictureTools(session, root), version=__version__)
        if address is None:
            serve_stdio(server)
        else:
            serve_http(server, address, lambda url: note(f"MCP at {url}"))
