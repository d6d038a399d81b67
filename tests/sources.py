"""The project's modules, and what they import, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

__all__ = ["FACE", "PACKAGES", "ROOT", "Import", "imports_in", "imports_of", "modules", "needs_of"]

ROOT = Path(__file__).parents[1]
# Folder -> import name.
PACKAGES = {"sdrpn": "sdrpn", "export": "sdrpn.export", "engines": "sdrpn.engines", "runtime": "sdrpn.runtime"}
# The public face: it hands names of every room on, each by a string, imported when somebody first asks for it.
FACE = "sdrpn"


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is imported as soon as the file is, or read by type checkers alone."""

    name: str
    at_import: bool
    line: int
    for_types: bool = False

    def is_of(self, *packages: str) -> bool:
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its import name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(imports_in(ast.parse(path.read_text(encoding="utf-8")), package, at_import=True))


def needs_of(module: str) -> tuple[Import, ...]:
    """What a module imports, also in functions and for types.

    Of the public face not what type checkers alone read there: it tells them of names that importing it does not load.
    """
    return tuple(imported for imported in imports_of(module) if module != FACE or not imported.for_types)


def imports_in(node: ast.AST, package: str, *, at_import: bool) -> Iterator[Import]:
    """What is imported below a node of a module in `package`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, at_import, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*above, base] if base else above)
            yield Import(base, at_import, child.lineno)
            # `from sdrpn import export` names a module in its second half.
            yield from (Import(f"{base}.{alias.name}", at_import, child.lineno) for alias in child.names)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports_in(child, package, at_import=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                for imported in imports_in(ast.Module([statement], []), package, at_import=False):
                    yield replace(imported, for_types=True)
            for statement in child.orelse:
                yield from imports_in(ast.Module([statement], []), package, at_import=at_import)
        else:
            yield from imports_in(child, package, at_import=at_import)
