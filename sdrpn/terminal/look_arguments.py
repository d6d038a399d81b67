"""Arguments of verbs that look: a kind of question, image tokens, the gate. Imports no library."""

from __future__ import annotations

import argparse

from sdrpn.terminal.argument_types import number_between, positive_int

__all__ = [
    "add_image_tokens_argument",
    "add_look_arguments",
    "add_parts_argument",
    "add_region_arguments",
    "add_shape_arguments",
    "add_worth_arguments",
]

# As in sdrpn.method.preset, sdrpn.families.family and sdrpn.bundle.graphs, which are not imported for --help.
PRESETS = ("document", "scene", "chart", "reading", "search", "high-resolution")
RESIZES = ("once", "official")
PARTS = ("all", "look")


def add_worth_arguments(group: argparse._ActionsContainer) -> None:
    """What an evaluation says of second looks."""
    group.add_argument(
        "--causal",
        action="store_true",
        help="is it the crop that answers? the RPN's crop as it is, blank, with another picture's pixels, and with the "
        "base view's",
    )
    group.add_argument(
        "--curve",
        action="store_true",
        help="accuracy over time and over tokens: one look, every threshold of the gate and of the map's strongest "
        "cell, always two looks, and oracles",
    )


def add_look_arguments(group: argparse._ActionsContainer, *, budget_only: bool = False) -> None:
    """Declare how many image tokens a picture becomes, the gate, and the word for all that an evaluation sets."""
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="for models that take pictures of any shape: the official evaluation's thresholds and image tokens for a "
        "kind of question; the other options replace parts of it",
    )
    add_image_tokens_argument(group)
    if budget_only:
        return
    group.add_argument(
        "--resize",
        choices=RESIZES,
        help="for such models: official: pictures are resized twice, as the official evaluation does it "
        "(default: once)",
    )
    group.add_argument(
        "--gate-threshold",
        metavar="X",
        type=number_between(-2, 2),
        help="for models with a gate: a score below this ends with the first look; below 0: always look again; above "
        "1: never (default: the model's own)",
    )


def add_image_tokens_argument(group: argparse._ActionsContainer) -> None:
    """Declare the budget of a picture."""
    group.add_argument(
        "--image-tokens",
        metavar="LEAST:MOST",
        type=image_tokens,
        help="for such models: how many image tokens a picture becomes, and each crop, such as 256:576 "
        "(default: the model's own)",
    )


def add_parts_argument(group: argparse._ActionsContainer, *, default: str | None = "all") -> None:
    """Declare whether all of a model is meant, or what looks."""
    group.add_argument(
        "--parts",
        choices=PARTS,
        default=default,
        help="look: only what finds where a question points, without the tail, which answers (default: all)",
    )


def add_shape_arguments(group: argparse._ActionsContainer) -> None:
    """Declare how a model that is planned by its name would be exported."""
    group.add_argument(
        "--precision", metavar="NAME", help="for a published model: as for `sdrpn export` (default: the target's best)"
    )
    group.add_argument(
        "--kv-cache",
        choices=("int8", "fp8"),
        help="for a published model: as for `sdrpn export`; for a bundle int8, with --backend openvino: as `sdrpn ask`",
    )
    group.add_argument(
        "--image-tokens",
        metavar="LEAST:MOST",
        type=image_tokens,
        help="for a published model: how many image tokens a picture becomes (default: as in its evaluation)",
    )


def image_tokens(text: str) -> tuple[int, int]:
    """LEAST:MOST, or one number for both."""
    least, colon, most = text.partition(":")
    try:
        pair = positive_int(least), positive_int(most if colon else least)
    except argparse.ArgumentTypeError:
        pair = 0, 0
    if not 4 <= pair[0] <= pair[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEAST:MOST, two numbers from 4 on in ascending order")
    return pair


def add_region_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare which cells of a RoI map become regions, and how they are looked at."""
    group.add_argument(
        "--threshold",
        metavar="X",
        type=number_between(-1, 1),
        help="cells of the RoI map above this become regions; negative: relative to the highest raw score (default: "
        "the model's own, which `sdrpn inspect` shows)",
    )
    group.add_argument(
        "--upscale",
        choices=("mask", "bbox"),
        help="mask: one crop around all regions, with only the cells above the threshold; bbox: up to two crops, all "
        "cells (default: the model's own)",
    )
    group.add_argument(
        "--max-share",
        metavar="S",
        type=number_between(0, 1),
        help="ignore regions larger than this share of the map, which the first look shows well enough (default: "
        "the model's own; the official limit is 0.390625)",
    )
