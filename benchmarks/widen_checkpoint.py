"""Widen a LLaVA checkpoint and its RPN by channels that change nothing they compute: larger blocks divide the result.

python benchmarks/widen_checkpoint.py examples/tiny/checkpoint examples/demo/rpn/rpn.safetensors wide
python benchmarks/widen_checkpoint.py examples/tiny/checkpoint examples/demo/rpn/rpn.safetensors wide --padding zeros

What adds to the residual stream (embeddings, projector, the output matrices of attention and MLP) adds zeros to its
further channels, and further heads and channels of the MLP are zeros as well. The weights that read them have no
effect: copies of the first weights of their row, so that a block has as many weights as in a model that is really so
wide, or zeros. RMS norms divide by more channels, and the RoI map is a mean over more heads: weights and epsilons of
the norms, and the queries that score, make up for that. The copy is in float32, and its results equal but for rounding.

--outlier 4 makes the weights of every matrix's first input 4 times as large, and that input a fourth: the same results
from weights of which some are far larger than others, whose block they make coarser.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint import Checkpoint, open_checkpoint
from sdrpn.checkpoint.rpn_file import read_rpn, write_rpn
from sdrpn.checkpoint.safetensors_file import SafetensorsWriter
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.errors import BadInput
from sdrpn.families.llava.names import HF_CURRENT, HF_OLD
from sdrpn.host.atomic import replacing_directory
from sdrpn.method.spec import ModelSpec

Floats = NDArray[np.float32]
Padding = Literal["copies", "zeros"]


# Of every layer: what computes the first input of its matrices, and the matrices.
_INPUTS = ("input_norm.weight", "post_norm.weight", "attention.v.weight", "mlp.up.weight")
_MATRICES = (
    *(f"attention.{part}.weight" for part in "qkvo"),
    *(f"mlp.{part}.weight" for part in ("gate", "up", "down")),
)


def widen(
    checkpoint: Path, rpn: Path, out: Path, *, multiple: int = 128, padding: Padding = "copies", outlier: float = 1.0
) -> ModelSpec:
    """Write the widened checkpoint, with its RPN and gate beside it, to the new or empty folder `out`.

    Args:
        multiple: what the widths of residual stream, heads and MLP are rounded up to
        padding: the weights that read what is always 0
        outlier: factor of the weights of every matrix's first input; a power of 2 is exact
    Raises: BadInput for a model of which this would not be exact
    """
    with open_checkpoint(checkpoint, rpn=rpn) as source, replacing_directory(out) as folder:
        _require_supported(source)
        spec = _wider(source.spec, multiple)
        shapes = tensor_shapes(spec)

        def read(name: str) -> Floats:
            array = _with_outlier(name, np.array(source.read(name), np.float32), outlier)
            return _widened(name, array, shapes[name], source.spec, spec, padding)

        _write_texts(checkpoint, folder, spec)
        own = {name: HF_OLD.file_name(name) for name in shapes if not name.startswith(("rpn.", "gate."))}
        stored = {file_name: shapes[name] for name, file_name in own.items()}
        with SafetensorsWriter(folder / "model.safetensors", stored, np.dtype(np.float32)) as writer:
            for name, file_name in own.items():
                writer.write(file_name, read(name))
        write_rpn(folder, spec, read, note=read_rpn(rpn).note, policy=source.policy)
    return spec


def _require_supported(source: Checkpoint) -> None:
    """Raises BadInput where further heads would change the map, or something has no place in the result."""
    llm, rpn = source.spec.llm, source.spec.rpn
    if source.layout not in (HF_OLD.name, HF_CURRENT.name):
        raise BadInput(f"{source.path} has the layout {source.layout}; expected one of Hugging Face's")
    if llm.heads != llm.kv_heads or llm.tied_embeddings:
        raise BadInput(
            f"{source.path} has {llm.heads} heads, {llm.kv_heads} key heads and "
            f"{'tied' if llm.tied_embeddings else 'separate'} embeddings; expected as many of both, and separate ones"
        )
    if rpn is None or not rpn.multi_head or rpn.loss == "mse" or rpn.gate_probe:
        raise BadInput(
            f"{source.path}: expected an RPN whose map is a mean over heads before the sigmoid, and no probe"
        )


def _wider(spec: ModelSpec, multiple: int) -> ModelSpec:
    llm = spec.llm
    width, mlp_width = (math.ceil(size / multiple) * multiple for size in (llm.width, llm.mlp_width))
    of_heads = math.lcm(multiple, llm.head_dim)
    heads = math.ceil(llm.heads * llm.head_dim / of_heads) * of_heads // llm.head_dim
    eps = llm.rms_norm_eps * llm.width / width
    wider = dataclasses.replace(llm, width=width, heads=heads, kv_heads=heads, mlp_width=mlp_width, rms_norm_eps=eps)
    return dataclasses.replace(spec, llm=wider)


def _with_outlier(name: str, array: Floats, factor: float) -> Floats:
    """The tensor with other weights for the first input of the matrices of a layer; changes `array`."""
    if not name.startswith("vision.") and ".layers." in name:
        if name.endswith(_INPUTS):
            array[0] /= factor
        if name.endswith(_MATRICES):
            array[:, 0] *= factor
    return array


def _widened(
    name: str, exact: Floats, shape: tuple[int, ...], own: ModelSpec, wider: ModelSpec, padding: Padding
) -> Floats:
    """One tensor of the model `own`, by its canonical name, in the shape that it has in the model `wider`."""
    if name.startswith("vision."):
        return exact
    if name.endswith("norm.weight"):
        # The same sum of squares, divided by more channels.
        exact = exact * np.float32(math.sqrt(own.llm.width / wider.llm.width))
    if own.rpn is not None and name == f"rpn.layers.{own.rpn.layers - 1}.attention.q.weight":
        # The same sum of scores, divided by more heads.
        exact = exact * np.float32(wider.llm.heads / own.llm.heads)
    if exact.ndim == 2 and name != "llm.embed.weight" and padding == "copies":
        exact = np.pad(exact, ((0, 0), (0, shape[1] - exact.shape[1])), mode="wrap")
    return np.pad(exact, [(0, size - known) for size, known in zip(shape, exact.shape, strict=True)])


def _write_texts(checkpoint: Path, folder: Path, spec: ModelSpec) -> None:
    """Copy tokenizer, template and configs, with the widths of `spec`."""
    for path in (*checkpoint.glob("*.json"), *checkpoint.glob("*.jinja")):
        if not path.name.startswith(("rpn", "model.safetensors")):
            shutil.copy(path, folder)
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    llm = spec.llm
    config["dtype"] = "float32"
    config["text_config"] |= {
        "head_dim": llm.head_dim,
        "hidden_size": llm.width,
        "intermediate_size": llm.mlp_width,
        "num_attention_heads": llm.heads,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.rms_norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="in Hugging Face's layout, such as examples/tiny/checkpoint")
    parser.add_argument("rpn", type=Path)
    parser.add_argument("out", type=Path, help="new or empty folder")
    parser.add_argument(
        "--multiple", type=int, default=128, help="what all widths of the result are a multiple of (default: 128)"
    )
    parser.add_argument(
        "--padding",
        choices=get_args(Padding),
        default="copies",
        help="weights that read channels of zeros: copies of weights of the same row, or zeros (default: copies)",
    )
    parser.add_argument(
        "--outlier", type=float, default=1.0, help="factor of the weights of every matrix's first input (default: 1)"
    )
    args = parser.parse_args()
    spec = widen(
        args.checkpoint, args.rpn, args.out, multiple=args.multiple, padding=args.padding, outlier=args.outlier
    )
    llm = spec.llm
    print(f"{args.out}: {llm.width} channels, {llm.heads} heads of {llm.head_dim}, an MLP of {llm.mlp_width}")


if __name__ == "__main__":
    main()
