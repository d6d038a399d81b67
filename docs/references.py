"""The pages that are made of the code: docs/cli.md from the command line, docs/api.md from what `sdrpn` hands on.

python docs/references.py            # says which are not up to date, exit code 1
python docs/references.py --write    # writes them
"""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sdrpn
from sdrpn.cli.main import JOBS, build_parser

DOCS = Path(__file__).parent
_MADE = "<!-- made by docs/references.py --write -->"
_CLI_INTRODUCTION = """\
`sdrpn VERB --help` says the same in a terminal. Results go to standard output, progress and errors to standard error.
Exit codes: 0 done, 1 the work failed, 2 a bad request, 130 interrupted, 141 the reader went away, 143 terminated.
With `--json` the result is one object on standard output, and so is a failure: `{"format_version", "error": {"code",
"message", "cure", "exit_code"}}`. The first entry is always `format_version`, 1 (of `inspect`: the bundle's). New
entries do not change it; one that is removed or changes its meaning does. JSON Lines have it in each line.
""".splitlines()


def main() -> int:
    """Compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write, stale = parser.parse_args().write, []
    for name, page in (("cli.md", cli_page), ("api.md", api_page)):
        path, text = DOCS / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if write:
            path.write_text(text, encoding="utf-8")
    if stale and not write:
        print(f"not up to date: {', '.join(stale)}; run it with --write", file=sys.stderr)
    return 1 if stale and not write else 0


# --- the command line


def cli_page() -> str:
    """Every verb with its arguments, by job."""
    parser = build_parser()
    lines = [
        "# Command line",
        _MADE,
        "",
        *_CLI_INTRODUCTION,
        "",
    ]
    for job, verbs in JOBS.items():
        lines += [f"**{job}**: " + ", ".join(f"[`{verb}`](#sdrpn-{verb})" for verb in verbs), ""]
    for verb in (verb for verbs in JOBS.values() for verb in verbs):
        lines += [*_verb(parser.parser_of(verb), verb), ""]
    return "\n".join(lines).rstrip() + "\n"


def _verb(parser: argparse.ArgumentParser, verb: str) -> Iterator[str]:
    yield f"## sdrpn {verb}"
    yield ""
    yield from _description(parser.description or "")
    steps = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not steps:
        yield from _arguments(parser, verb)
    for name, step in (pair for action in steps for pair in action.choices.items()):
        yield f"### sdrpn {verb} {name}"
        yield ""
        yield from _description(step.description or "")
        yield from (*_arguments(step, f"{verb} {name}"), "")


def _arguments(parser: argparse.ArgumentParser, command: str) -> Iterator[str]:
    """The usage, and a table for each group."""
    named = [action for action in parser._actions if not action.option_strings]
    usage = " ".join(["sdrpn", command, *(str(action.metavar or action.dest) for action in named), "[options]"])
    yield f"`{usage}`"
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if "--help" not in action.option_strings and action.help != argparse.SUPPRESS
        ]
        if not actions:
            continue
        title = {"options": "option", "positional arguments": "argument"}.get(group.title or "", group.title)
        yield from ("", f"| {title} | |", "|---|---|")
        for action in actions:
            yield f"| {_names(action)} | {_cell(_help(parser, action))} |"


def _description(text: str) -> Iterator[str]:
    """Paragraphs as they are; indented lines are commands."""
    for paragraph in re.split(r"\n{2,}", text.strip("\n")):
        if all(line.startswith("  ") for line in paragraph.splitlines()):
            yield from ("```sh", *(line[2:] for line in paragraph.splitlines()), "```")
        else:
            yield from (_escaped(line) for line in paragraph.splitlines())
        yield ""


def _names(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {_value(action)}"
    if not action.option_strings:
        return f"`{_value(action)}`"
    return f"`{', '.join(action.option_strings)}{value}`".replace("|", "\\|")


def _value(action: argparse.Action) -> str:
    name = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
    if isinstance(name, tuple):
        return " ".join(name)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


# --- the public names


def api_page() -> str:
    """Every name of `sdrpn.__all__`: functions, classes with their public members, errors."""
    found = {name: getattr(sdrpn, name) for name in sdrpn.__all__ if not name.startswith("__")}
    errors = [name for name, thing in found.items() if inspect.isclass(thing) and issubclass(thing, Exception)]
    classes = [name for name, thing in found.items() if inspect.isclass(thing) and name not in errors]
    functions = [name for name in found if name not in errors and name not in classes]
    lines = [
        "# Python",
        _MADE,
        "",
        "`import sdrpn` loads no library; each name is imported when it is first used.",
        "",
    ]
    for title, names in (("classes", classes), ("functions", functions)):
        if names:
            lines += [f"**{title}**: " + ", ".join(f"[`{name}`](#{name.lower()})" for name in names), ""]
    lines += ["**errors**: [all](#errors)", ""]
    for name in classes:
        lines += [*_class(name, found[name])]
    for name in functions:
        lines += [f"## {name}", "", *_function(name, found[name])]
    lines += ["## Errors", "", "| error | base | when |", "|---|---|---|"]
    for name in errors:
        base = found[name].__mro__[1].__name__
        lines.append(f"| `{name}` | `{base}` | {_cell(_summary(found[name]))} |")
    return "\n".join(lines).rstrip() + "\n"


def _class(name: str, found: type) -> Iterator[str]:
    yield from (f"## {name}", "")
    yield from _docstring(found)
    fields = getattr(found, "__dataclass_fields__", None)
    if fields is not None:
        for owner in _owners(found)[1:]:
            if hasattr(owner, "__dataclass_fields__"):
                yield from _docstring(owner)
        yield from ("```python", *_fields(name, found), "```", "")
    for member, value in _members(found).items():
        if member.startswith("_") or (fields is not None and member in fields):
            continue
        if isinstance(value, property):
            yield from (f"### {name}.{member}", "", f"*property*: {_type(value.fget)}", "", *_docstring(value))
        elif isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            yield from (
                f"### {name}.{member}",
                "",
                *_function(member, function, bound=not isinstance(value, staticmethod)),
            )


def _members(found: type) -> dict[str, Any]:
    """Its own, then those that it inherits."""
    members: dict[str, Any] = {}
    for owner in _owners(found):
        members = {**members, **{name: value for name, value in vars(owner).items() if name not in members}}
    return members


def _owners(found: type) -> list[type]:
    """A class, and those of the package that it extends and that have no section of their own."""
    others = [owner for owner in found.__mro__[1:] if owner.__module__.startswith("sdrpn.")]
    return [found, *(owner for owner in others if owner.__name__ not in sdrpn.__all__)]


def _fields(name: str, found: type) -> Iterator[str]:
    """A dataclass as its definition has it, with the defaults."""
    yield f"{name}("
    yield from (f"    {part}," for part in _parts(list(inspect.signature(found).parameters.values())))
    yield ")"


def _function(name: str, function: Callable[..., Any], bound: bool = False) -> Iterator[str]:
    yield "```python"
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    returns = f" -> {_type(function)}"
    parts = _parts(parameters)
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= 100:
        yield line
    else:
        yield from (f"{name}(", *(f"    {part}," for part in parts), f"){returns}")
    yield from ("```", "", *_docstring(function))


def _parts(parameters: Sequence[inspect.Parameter]) -> list[str]:
    """With the star before those that are named."""
    parts = []
    for before, parameter in zip([None, *parameters], parameters, strict=False):
        if parameter.kind is parameter.KEYWORD_ONLY and (before is None or before.kind is not parameter.KEYWORD_ONLY):
            parts.append("*")
        parts.append(_parameter(parameter.name, parameter.annotation, parameter.default))
    return parts


def _parameter(name: str, annotation: Any, default: Any) -> str:
    text = f"{name}: {annotation if isinstance(annotation, str) else getattr(annotation, '__name__', annotation)}"
    if default is inspect.Parameter.empty:
        return text
    if isinstance(default, enum.Enum) or not isinstance(default, (str, int, float, bool, tuple, type(None))):
        return f"{text} = ..."  # computed, and may be long
    return f"{text} = {default!r}"


def _type(function: Any) -> str:
    annotation = inspect.signature(function).return_annotation
    return str(annotation) if annotation is not inspect.Signature.empty else "None"


def _docstring(thing: Any) -> Iterator[str]:
    """Paragraphs; what is named under `Args:` becomes a list, as it is a line a name."""
    inside = False
    fields = getattr(thing, "__dataclass_fields__", {})
    for line in (inspect.getdoc(thing) or "").splitlines():
        section = re.match(r"(Args|Raises|Returns):\s*(.*)", line)
        entry = re.match(r"    ([\w, *]+): (.*)", line)
        if section is not None:
            inside = True
            yield from ("", f"**{section.group(1)}:** {_escaped(section.group(2))}".rstrip(), "")
        elif inside and entry is not None:
            yield f"- `{entry.group(1)}`: {_escaped(entry.group(2))}"
        elif (field := re.match(r"([\w, ]+): (.*)", line)) is not None and set(field.group(1).split(", ")) <= set(
            fields
        ):
            yield f"- `{field.group(1)}`: {_escaped(field.group(2))}"
            inside = True
        elif inside and line.startswith("    "):
            yield f"  {_escaped(line.strip())}"
        elif line.startswith("    "):
            yield f"- {_escaped(line.strip())}"
        else:
            inside = inside and not line
            yield _escaped(line)
    yield ""


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


def _escaped(text: str) -> str:
    """Markdown's own characters outside of code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
