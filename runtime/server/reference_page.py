"""The OpenAPI description as a page: no script, nothing from elsewhere. Knows no endpoint by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["reference_page"]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8886; }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
"""


def reference_page(description: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI 3.1 description."""
    title = escape(str(description["info"]["title"]))
    body = "".join([*_operations(description), *_schemas(description)])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: reference</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f'<body><main><h1>{title}: reference</h1><p>For machines: <a href="openapi.json">openapi.json</a>.</p>{body}'
        "</main></body></html>"
    )


def _operations(description: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Endpoints</h2><table><thead><tr><th>Endpoint</th><th>What it does</th><th>Body</th></tr></thead><tbody>"
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            text = " ".join(str(operation.get("description", "")).split())
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            yield (
                f"<tr><td><code>{escape(method.upper())} {escape(path)}</code></td><td>{_prose(text)}</td>"
                f"<td>{_type(content['schema']) if content else ''}</td></tr>"
            )
    yield "</tbody></table>"


def _schemas(description: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in sorted(description.get("components", {}).get("schemas", {}).items()):
        text = " ".join(str(schema.get("description", "")).split())
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{_prose(text)}</p>'
        required = set(schema.get("required", ()))
        yield "<table><thead><tr><th>Entry</th><th>Type</th><th>What</th></tr></thead><tbody>"
        for entry, inner in schema.get("properties", {}).items():
            must = " (required)" if entry in required else ""
            yield (
                f"<tr><td><code>{escape(entry)}</code>{must}</td><td>{_type(inner)}</td>"
                f"<td>{escape(str(inner.get('description', '')))}</td></tr>"
            )
        yield "</tbody></table>"


def _prose(text: str) -> str:
    """A docstring as HTML: what stands between backticks is code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _type(schema: Mapping[str, Any]) -> str:
    """A type as HTML, with links to those that have a table of their own."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(_type(inner) for inner in schema[key])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of {_type(schema['items'])}"
    return escape(str(schema.get("type", "any")))
