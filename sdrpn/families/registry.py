"""Families by name, as in a manifest's `family`. Imports a family when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from sdrpn.errors import BadInput
from sdrpn.families.family import Family
from sdrpn.host.json_reader import Misfit, read_dataclass, shown
from sdrpn.method.geometry import Fit, Seen
from sdrpn.method.recipe import HeadTable, Recipe
from sdrpn.method.spec import ModelSpec, Vision

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sdrpn.images.pixels import SquareVision
    from sdrpn.text.prompt import Pieces, Prompt
    from sdrpn.text.turns import Turn

__all__ = [
    "assumed_of_shape",
    "claiming_family",
    "family_named",
    "family_of",
    "fit_of",
    "input_side_px",
    "load_part",
    "pieces_of",
    "prompt_names",
    "prompt_of",
    "published_heads",
    "published_recipes",
    "published_shapes",
    "publisher_of",
    "registered",
    "seen_of",
    "spec_from_json",
    "square_of",
    "usual_family",
]

# name -> module:object. A new family is a line here and a folder beside this file.
_FAMILIES: dict[str, str] = {
    "llava": "sdrpn.families.llava.family:FAMILY",
    "qwen2.5-vl": "sdrpn.families.qwen.family:QWEN25",
    "qwen3-vl": "sdrpn.families.qwen.family:QWEN3",
}


def family_named(name: str) -> Family:
    """The family of a name. Raises BadInput for a name that this version does not know."""
    place = _FAMILIES.get(name)
    if place is None:
        raise BadInput(
            f"the model family {name!r} is unknown to this version; expected {' or '.join(_FAMILIES)}: use the version "
            "of sdrpn that the bundle was exported with"
        )
    return cast(Family, load_part(place))


def family_of(spec: ModelSpec) -> Family:
    """The family of a model."""
    return family_named(spec.vision.family)


def claiming_family(config: Mapping[str, Any]) -> Family | None:
    """The family that claims a checkpoint's config.json; None: no family does."""
    families = (family_named(name) for name in _FAMILIES)
    return next((family for family in families if family.claims(config)), None)


def usual_family() -> Family:
    """The first one: what no family claims is opened as if it were of this one, which says what is wrong with it."""
    return family_named(next(iter(_FAMILIES)))


def prompt_names() -> tuple[str, ...]:
    """The prompts that any family knows by name."""
    return tuple(name for family in _FAMILIES for name in family_named(family).prompt_names)


def spec_from_json(value: object, place: str = "") -> ModelSpec:
    """The inverse of `ModelSpec.to_json`. Raises BadInput for a missing or unknown entry, or an unknown family."""
    prefix = f"{place}." if place else ""
    name = value.get("family") if isinstance(value, dict) else None
    if name is not None and not isinstance(name, str):
        raise Misfit(f"{prefix}family is {shown(name)}; expected the name of a model family")
    if not isinstance(value, dict) or name is None:
        raise Misfit(f"{prefix}family is missing; export the checkpoint again")
    vision = family_named(name).vision_type()
    entries = {key: entry for key, entry in value.items() if key != "family"}
    readers = {Vision: lambda inner, at: read_dataclass(vision, inner, at)}
    return read_dataclass(ModelSpec, entries, place, readers)


def prompt_of(spec: ModelSpec, tokenizer: Tokenizer, question: str) -> Prompt:
    """A question as token ids around the image, as the model's family puts it. Raises BadInput."""
    return family_of(spec).prompt(tokenizer, spec, question)


def published_shapes() -> dict[str, ModelSpec]:
    """Published models of every family by name, to plan for before a checkpoint is there."""
    return {name: spec for family in _FAMILIES for name, spec in family_named(family).shapes().items()}


def published_heads() -> dict[str, HeadTable]:
    """The official choices of grounding heads of every family, by name."""
    return {name: heads for family in _FAMILIES for name, heads in family_named(family).head_tables().items()}


def published_recipes() -> dict[str, Recipe]:
    """The official trainings of RPNs of every family, by name."""
    return {name: recipe for family in _FAMILIES for name, recipe in family_named(family).recipes().items()}


def publisher_of(name: str, table: Callable[[Family], Mapping[str, object]]) -> Family | None:
    """The family in whose table of published things the name is; None: in none."""
    return next((family for family in map(family_named, _FAMILIES) if name in table(family)), None)


def assumed_of_shape(name: str) -> tuple[str, ...]:
    """What is not known of a published model and was assumed."""
    family = published_shapes()[name].vision.family
    return tuple(family_named(family).assumed(name))


def pieces_of(spec: ModelSpec, tokenizer: Tokenizer, turns: Sequence[Turn]) -> Pieces:
    """A conversation as token ids, cut at its images. Raises BadInput."""
    return family_of(spec).chat(tokenizer, spec, turns)


def square_of(model: ModelSpec | Vision) -> SquareVision:
    """The vision spec of a model that sees every picture as one square. Raises BadInput for other models."""
    vision = model.vision if isinstance(model, ModelSpec) else model
    square = family_named(vision.family).square(vision)
    if square is None:
        raise BadInput(
            f"models of the family {vision.family!r} do not see pictures as squares, which this needs; such "
            "models can only be exported and asked"
        )
    return square


def input_side_px(spec: ModelSpec) -> int | None:
    """The side of the square that a model sees of every picture; None for a model whose input has its shape."""
    square = family_of(spec).square(spec.vision)
    return None if square is None else square.image_size_px


def fit_of(spec: ModelSpec) -> Fit:
    """How pictures become squares; for a model that does not use squares, the default."""
    square = family_of(spec).square(spec.vision)
    return "pad" if square is None else square.fit


def seen_of(spec: ModelSpec) -> Seen:
    """What the grid covers of a picture."""
    square = family_of(spec).square(spec.vision)
    return "whole" if square is None else square.fit


def load_part(place: str) -> Any:
    """Import what a family names as "module:object", in the stage that needs it and has its libraries."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def registered(name: str, place: str) -> Iterator[None]:
    """A further family within the block, such as one of another package, or of a test."""
    if name in _FAMILIES:
        raise BadInput(f"a family {name!r} exists already; choose another name")
    _FAMILIES[name] = place
    try:
        yield
    finally:
        del _FAMILIES[name]
