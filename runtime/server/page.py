"""The page at `/`: files of the folder `page`, with headers that let it load nothing but its own. Knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sdrpn.tags import shipped_scene

__all__ = ["PAGE_HEADERS", "add_page"]

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
EXAMPLE = "example.png"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}

# Scripts and styles of this server alone, none inline; pictures that the page itself made; no other page around it.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "media-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Asked for again with each visit, answered by 304: a new version of the server is never mixed with an old page.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str
    tag: str


def add_page(app: FastAPI) -> None:
    """Serve the page: `/` and the files that it loads, below `/page/`. They are read once."""
    paths = [path for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES]
    files = {path.name: _file(path) for path in paths} | {EXAMPLE: _file(shipped_scene().picture)}

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _response(files[INDEX], request)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in files or name == INDEX:
            raise HTTPException(404, "the page has no such file")
        return _response(files[name], request)


def _file(path: Path) -> _File:
    data = path.read_bytes()
    return _File(data, _TYPES[path.suffix], f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"')


def _response(file: _File, request: Request) -> Response:
    headers = {**PAGE_HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)
