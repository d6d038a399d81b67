"""One page of figures from those of several replicas, each with the label `replica`. Knows Prometheus' text alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["joined_figures"]

_COMMENT = re.compile(r"# (HELP|TYPE) (\S+)")
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(\{.*\})?( .+)")


def joined_figures(pages: Mapping[str, str]) -> str:
    """Pages by their replica's name, as one: every family once, with the samples of all replicas."""
    comments: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, page in pages.items():
        family = ""
        for line in page.splitlines():
            if found := _COMMENT.match(line):
                kind, family = found.groups()
                comments.setdefault(family, {}).setdefault(kind, line)
            elif found := _SAMPLE.fullmatch(line):
                name, labels, rest = found.groups()
                inside = f",{labels[1:-1]}" if labels and labels != "{}" else ""
                samples.setdefault(family or name, []).append(f'{name}{{replica="{replica}"{inside}}}{rest}')
    lines = [line for family in samples for line in (*comments.get(family, {}).values(), *samples[family])]
    return "\n".join([*lines, ""])
