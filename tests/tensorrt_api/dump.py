"""Print what a module of TensorRT's bindings offers as JSON. Run as a script: dump.py MODULE FOLDER."""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any


def describe(name: str, attribute: Any, owner: type) -> dict[str, Any]:
    """Its kind, and the class that its documentation says it gives."""
    if isinstance(attribute, property):
        return {"kind": "property", "gives": given(getattr(attribute.fget, "__doc__", None))}
    if isinstance(attribute, type):
        return {"kind": "class", "gives": None}
    if callable(attribute):
        documentation = attribute.__doc__
        return {
            "kind": "method",
            "gives": given(documentation),
            "own": name in vars(owner),
            "takes": taken(name, documentation),
        }
    return {"kind": "member", "gives": type(attribute).__name__}


def given(documentation: str | None) -> str | None:
    """The class after the arrow of a signature; of a list its entries'."""
    found = re.findall(r"->\s*(?:[Ll]ist\[)?(?:[\w.:]+[.:])?(\w+)\]?\s*$", documentation or "", re.MULTILINE)
    return found[0] if found else None


def taken(name: str, documentation: str | None) -> list[tuple[int, int]]:
    """How many arguments every documented form takes, at least and at most, without `self`."""
    found = []
    for line in (documentation or "").splitlines():
        head, opening, rest = line.strip().partition(f"{name}(self: ")
        if opening and re.fullmatch(r"(\d+\. )?", head):
            arguments = top_level(rest[: rest.rindex(") ->")])[1:]
            needed = [argument for argument in arguments if "=" not in argument]
            found.append((len(needed), len(arguments)))
    return found


def top_level(text: str) -> list[str]:
    """Parts between commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def main() -> None:
    name, folder = sys.argv[1:]
    if folder:
        sys.path.insert(0, folder)
    trt = importlib.import_module(name)
    classes = {entry: value for entry, value in vars(trt).items() if isinstance(value, type)}
    nested = {
        inner.__name__: inner
        for outer in classes.values()
        for inner in vars(outer).values()
        if isinstance(inner, type) and inner.__name__ not in classes
    }
    dumped = {
        entry: {
            attribute: describe(attribute, getattr(value, attribute), value)
            for attribute in dir(value)
            if not attribute.startswith("_")
        }
        for entry, value in {**nested, **classes}.items()
    }
    names = {entry: "class" if entry in classes else "other" for entry in dir(trt)}
    json.dump({"version": trt.__version__, "module": names, "classes": dumped}, sys.stdout)


if __name__ == "__main__":
    main()
