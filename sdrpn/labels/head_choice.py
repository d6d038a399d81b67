"""The heads that ground an answer in the image: the official choices, or a file written by `sdrpn heads`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of, published_heads, publisher_of
from sdrpn.host.atomic import replacing_file
from sdrpn.method.spec import ModelSpec

__all__ = ["HEADS_NAME", "Head", "HeadChoice", "by_layer", "read_heads", "require_heads_of", "write_heads"]

Head: TypeAlias = tuple[int, int]  # layer, head

HEADS_NAME = "heads.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class HeadChoice:
    """Heads whose mean attention becomes a label, and how its sinks are found."""

    name: str
    grounding: tuple[Head, ...]
    # Heads whose mean attention shows the sinks of each image, by the official limit.
    sinks: tuple[Head, ...] = ()
    # Without them: whether sinks are the cells that the grounding heads attend to for any question, or there are none.
    usual_sinks: bool = True

    def __post_init__(self) -> None:
        if not self.grounding:
            raise BadInput("no grounding head was chosen; expected at least one pair of layer and head")


def _heads(layers: Mapping[int, Sequence[int]]) -> tuple[Head, ...]:
    return tuple((layer, head) for layer, heads in layers.items() for head in heads)


def by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    """Layer -> its heads, sorted, without duplicates."""
    layers: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        layers.setdefault(layer, []).append(head)
    return layers


def read_heads(name: str) -> HeadChoice:
    """A preset by name, or a file or folder written by `sdrpn heads`. Raises BadInput."""
    presets = published_heads()
    if name in presets:
        table = presets[name]
        return HeadChoice(name, _heads(table.grounding), _heads(table.sinks), usual_sinks=False)
    path = Path(name) / HEADS_NAME if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise BadInput(f"{name} is neither a file nor one of {', '.join(presets)}; write one with `sdrpn heads`")
    try:
        value = json.loads(path.read_text("utf-8"))
        if value["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {value['format_version']}")
        grounding = tuple((int(layer), int(head)) for layer, head in value["grounding"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a choice of heads ({error}); write it again with `sdrpn heads`") from error
    return HeadChoice(str(path), grounding)


def require_heads_of(spec: ModelSpec, heads: HeadChoice) -> None:
    """Raise BadInput for the official choice of a model of another family."""
    own, publisher = family_of(spec), publisher_of(heads.name, lambda family: family.head_tables())
    if publisher is not None and publisher.name != own.name:
        tables = ", ".join(own.head_tables())
        raise BadInput(
            f"the heads {heads.name} are those of a {publisher.name}, and the checkpoint is a {own.name}; expected "
            f"{tables}{', ' if tables else ''}or a file that `sdrpn heads` wrote",
            options=("heads",),
        )


def write_heads(path: Path, grounding: Sequence[Head], details: dict[str, Any]) -> None:
    """Write a choice; `details` say how it was made and are not read back."""
    value = {"format_version": FORMAT_VERSION, "grounding": [list(head) for head in grounding], **details}
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
