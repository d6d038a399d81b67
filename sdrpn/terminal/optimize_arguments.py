"""Arguments of the verb that saves graphs for this machine's CPU: which, for which library, in what form."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.terminal.argument_types import names, positive_int

__all__ = ["add_optimize_arguments"]


def add_optimize_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--variant", metavar="NAME", help="variant to optimise (default: the one that suits a CPU best)"
    )
    parser.add_argument(
        "--for",
        dest="library",
        choices=("onnxruntime", "openvino"),
        default="onnxruntime",
        help="the library that is to run them (default: onnxruntime)",
    )
    parser.add_argument(
        "--attention",
        choices=("group-query", "standard"),
        help="standard: keep attention as exported (default: group-query; standard for the dialect primitive, for "
        "caches in 8 bits and for variants that compute in fp16)",
    )
    parser.add_argument(
        "--int8",
        metavar="A,B",
        type=names,
        default=(),
        help="parts of lm_head,rpn,vision: in 8 bits what the bundle has in floats, unless that changes the results "
        "of its graph by more than 5 %% of their spread; half to a quarter of the memory (default: none)",
    )
    parser.add_argument(
        "--int4",
        metavar="A",
        type=names,
        default=(),
        help="lm_head: in 4 bits what the bundle has in floats or in 8 bits, made from --checkpoint where that is "
        "named, unless that changes its results by more than 25 %% of their spread: a faster decode (default: none)",
    )
    parser.add_argument(
        "--block",
        metavar="N",
        type=positive_int,
        help="inputs that share a scale in 4-bit matrices, such as 128: made again from --checkpoint, unless that adds "
        "more than 40 %% to their error (default: as exported)",
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR", type=Path, help="what the bundle was exported from, for --block and --int4"
    )
    parser.add_argument("--rpn", metavar="FILE", type=Path, help="the RPN that it was exported with, for --checkpoint")
