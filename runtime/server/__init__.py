"""HTTP around a session: OpenAI's interface, looks, limits and metrics. Knows no command line, and opens no bundle.

The event loop only moves bytes: pictures are read in threads, and graphs run in the thread of the session's scheduler.
Needs the extra `serve`; nothing else imports it.
"""

from __future__ import annotations

from sdrpn.runtime.server.app import create_app
from sdrpn.runtime.server.options import ServerOptions

__all__ = ["ServerOptions", "create_app"]
