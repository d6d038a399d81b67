"""The tower of Qwen2.5-VL in ONNX Runtime and OpenVINO against transformers' own with sdpa, of one release or several.

The model is that of `qwen.py`: 8 blocks, 384 wide, full attention in two of them; random weights. Every side runs in a
process of its own, with one thread, and all take turns; those in floats of 32 bits have to give the same image tokens.
Processes are started several times, since transformers' speed differs from start to start. Figures are medians of the
CPU time, which other processes disturb less than the time that passes, and errors are relative to transformers'.

    OMP_NUM_THREADS=1 python benchmarks/qwen_tower.py
    OMP_NUM_THREADS=1 python benchmarks/qwen_tower.py --optimized --openvino --python venv-4.51/bin/python
    OMP_NUM_THREADS=1 python benchmarks/qwen_tower.py --optimized --openvino --int8 --bf16 --starts 5

An interpreter of `--python` needs torch and transformers, not sdrpn.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LEAST_RUNS = 2  # before those that count
MOST_DIFFERENCE = 2e-3


class Tower(Protocol):
    """Something that turns patches into image tokens (n,D)."""

    name: str

    def run(self) -> Any:
        """See above."""


def transformers_tower(folder: Path, *, bf16: bool = False) -> Tower:
    """The tower of the checkpoint in `folder`, by the transformers of this process; in bf16 as official evaluations."""
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    torch.set_num_threads(1)
    library: Any = transformers
    config = library.AutoConfig.from_pretrained(folder / "checkpoint").vision_config
    config._attn_implementation = "sdpa"
    tower: Any = Qwen2_5_VisionTransformerPretrainedModel(config)
    tower.eval().requires_grad_(False)
    tensors: dict[str, Any] = {}
    for path in (folder / "checkpoint").glob("*.safetensors"):
        tensors |= load_file(path)
    own = {key.partition("visual.")[2]: value.float() for key, value in tensors.items() if "visual." in key}
    tower.load_state_dict(own)
    inputs = np.load(folder / "inputs.npz")
    frames = torch.from_numpy(inputs["frames"])
    if bf16:
        tower, frames = tower.bfloat16(), frames.bfloat16()
    grid = torch.from_numpy(inputs["grid"])

    class Transformers:
        name = f"transformers {transformers.__version__}" + (", bf16" if bf16 else "")

        def run(self) -> Any:
            with torch.inference_mode():
                found = tower(frames, grid_thw=grid)
            return getattr(found, "pooler_output", found).float().numpy()

    return Transformers()


def our_tower(folder: Path, backend: str, *, saved: str | None = None, bf16: bool = False) -> Tower:
    """The vision graph of the bundle in `folder`, as a session runs it.

    Args: saved: the copy of the bundle whose saved graphs are taken
    """
    from sdrpn.runtime.backends.host_buffer import HostBuffer
    from sdrpn.runtime.opening import OpeningRequest, RunOptions

    run = RunOptions(
        backend=backend,
        threads=1,
        variant="fused-fp32",
        optimized=saved is not None,
        vision_type="bf16" if bf16 else None,
    )
    opening = OpeningRequest(folder / (saved or "bundle"), run).choose()
    graph = opening.variant.graphs["vision"]
    path = opening.bundle.file(graph.file) if opening.engines is None else opening.engines["vision"]
    runner = opening.backend.load(graph, path)
    inputs = np.load(folder / "inputs.npz")
    feeds = {name: HostBuffer(inputs[name]) for name in runner.inputs}
    embeds = HostBuffer.zeros((1, len(inputs["pixel_values"]) // 4, opening.bundle.spec.llm.width), "float32")
    step = runner.bind(feeds, {"image_embeds": embeds})
    forms = {"int8": "--int8 vision", "optimized": "sdrpn optimize"}
    added = [forms[saved.partition("-")[0]]] if saved else []

    class Ours:
        name = ", ".join([f"{backend} {version(backend)}", *added, *(["bf16"] if bf16 else [])])

        def run(self) -> Any:
            step()
            return embeds.array[0]

    return Ours()


LIBRARIES = ("onnxruntime", "openvino")
TOWERS: dict[str, Callable[[Path], Tower]] = {
    "transformers": transformers_tower,
    "transformers-bf16": lambda folder: transformers_tower(folder, bf16=True),
    **{library: partial(our_tower, backend=library) for library in LIBRARIES},
    **{
        f"{form}-{library}": partial(our_tower, backend=library, saved=f"{form}-{library}")
        for form in ("optimized", "int8")
        for library in LIBRARIES
    },
    "openvino-bf16": partial(our_tower, backend="openvino", bf16=True),
    "int8-openvino-bf16": partial(our_tower, backend="openvino", saved="int8-openvino", bf16=True),
}
ROUNDED = ("bf16", "int8")  # in the names of sides that are not in floats of 32 bits


def serve(tower: Tower, folder: Path) -> None:
    """Say the name; run once for every line that comes, and say how many seconds of CPU time that took."""
    np.save(folder / f"{tower.name}.npy", tower.run())
    print(tower.name, flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        tower.run()
        print(time.process_time() - start, flush=True)


class Side:
    """A process that serves a tower."""

    def __init__(self, python: str, kind: str, folder: Path) -> None:
        command = [python, __file__, "--serve", kind, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._line()

    def turn(self) -> float:
        """Seconds of CPU time of one run."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("a side ended; its error is above")
        return line


def write_model(folder: Path, image_wh: tuple[int, int], tokens: tuple[int, int]) -> None:
    """Checkpoint, bundle, and what the towers take of one picture."""
    import dataclasses

    from PIL import Image
    from qwen import SPEC

    from sdrpn.checkpoint.random import write_random_checkpoint
    from sdrpn.export import ExportOptions, export_bundle
    from sdrpn.families.qwen.vision_spec import qwen_vision_of, with_image_tokens
    from sdrpn.families.registry import family_of

    llm = dataclasses.replace(SPEC.llm, layers=2)
    spec = dataclasses.replace(SPEC, llm=llm, tap_layer=1, rpn=None)
    write_random_checkpoint(folder / "checkpoint", spec)
    export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions("fp32", "fused"))
    vision = with_image_tokens(qwen_vision_of(spec), *tokens)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(image_wh, Image.Resampling.BICUBIC)
    look = family_of(spec).first_look(picture, vision)
    patches = look["pixel_values"]
    frames = patches.reshape(len(patches), 3, 1, -1).repeat(vision.frames, axis=2).reshape(len(patches), -1)
    rows, columns = vision.grid(picture.size).hw
    grid = np.array([[1, rows * vision.merge, columns * vision.merge]])
    arrays: dict[str, Any] = {"frames": frames, "grid": grid, **look}
    np.savez(folder / "inputs.npz", **arrays)


def save_graphs(folder: Path, kinds: Sequence[str]) -> None:
    """Copies of the bundle with the graphs that `sdrpn optimize` saves, for the sides that take them."""
    from sdrpn.workflows.graph_optimization import optimize_bundle

    for form, parts in (("optimized", ()), ("int8", ("vision",))):
        for library in LIBRARIES:
            if f"{form}-{library}" in kinds:
                shutil.copytree(folder / "bundle", folder / f"{form}-{library}")
                optimize_bundle(folder / f"{form}-{library}", library=library, int8=parts, threads=1)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """As `sdrpn verify` measures the noise of a tower."""
    difference = found.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


@dataclass
class Measured:
    """A side's runs."""

    seconds: list[float] = field(default_factory=list)
    error: float = 0.0  # relative, against transformers of this interpreter in float32

    @property
    def median_s(self) -> float:
        """The median over all starts."""
        return statistics.median(self.seconds)


def measured(folder: Path, sides: Sequence[tuple[str, str]], starts: int, rounds: int) -> dict[str, Measured]:
    """Every (interpreter, kind) by its name, the first of which is compared with.

    Args: rounds: of every start
    """
    found: dict[str, Measured] = {}
    for _ in range(starts):
        with ExitStack() as stack:
            running: list[Side] = []
            for python, kind in sides:
                running.append(Side(python, kind, folder))
                stack.callback(running[-1].close)
            expected = np.load(folder / f"{running[0].name}.npy")
            for side, (_, kind) in zip(running, sides, strict=True):
                error = relative_error(np.load(folder / f"{side.name}.npy"), expected)
                if error > MOST_DIFFERENCE and not any(name in kind for name in ROUNDED):
                    raise SystemExit(f"{side.name} gives other image tokens than {running[0].name}, by {error:.1e}")
                found.setdefault(side.name, Measured()).error = error
            for count in range(rounds + LEAST_RUNS):
                for side in running:
                    seconds = side.turn()
                    if count >= LEAST_RUNS:
                        found[side.name].seconds.append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="a further interpreter")
    parser.add_argument("--optimized", action="store_true", help="also the graphs that `sdrpn optimize` saves")
    parser.add_argument("--openvino", action="store_true", help="also the backend openvino")
    parser.add_argument("--int8", action="store_true", help="also those of `sdrpn optimize --int8 vision`")
    parser.add_argument("--bf16", action="store_true", help="also transformers and OpenVINO in bf16")
    parser.add_argument("--image", default="640x480", metavar="WxH")
    parser.add_argument("--image-tokens", default="256:576", metavar="LEAST:MOST")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each start")
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        kind, folder = args.serve[0], Path(args.serve[1])
        serve(TOWERS[kind](folder), folder)
        return
    width, height = map(int, args.image.split("x"))
    least, most = map(int, args.image_tokens.split(":"))
    kinds = asked_kinds(args)
    theirs = ["transformers", *(["transformers-bf16"] if args.bf16 else [])]
    sides = [(sys.executable, kind) for kind in (*theirs, *kinds)] + [(each, "transformers") for each in args.python]
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), (width, height), (least, most))
        save_graphs(Path(name), kinds)
        found = measured(Path(name), sides, args.starts, args.rounds)
        patches = len(np.load(Path(name) / "inputs.npz")["pixel_values"])
    names = list(found)
    others = {name: found[name] for name in (*names[: len(theirs)], *names[len(theirs) + len(kinds) :])}
    ours = {name: side for name, side in found.items() if name not in others}
    if args.json:
        report = {
            "format_version": 2,
            "patches": patches,
            "median_s": {name: side.median_s for name, side in found.items()},
            "relative_error": {name: side.error for name, side in found.items()},
            "times_ours": {
                name: {mine: side.median_s / own.median_s for mine, own in ours.items()}
                for name, side in others.items()
            },
        }
        print(json.dumps(report, indent=2))
        return
    runs = f"{args.starts} starts of {args.rounds} runs in turns"
    print(f"{patches} patches, 1 thread, CPU time, medians of {runs}; times as fast as {', '.join(others)}")
    for name, side in found.items():
        ratios = ", ".join(f"{other.median_s / side.median_s:.2f}" for other in others.values())
        print(f"{name}: {side.median_s * 1e3:.0f} ms, error {side.error:.1e}{f', {ratios}' if name in ours else ''}")


def asked_kinds(args: argparse.Namespace) -> list[str]:
    """Our sides."""
    libraries = LIBRARIES if args.openvino else LIBRARIES[:1]
    kinds = list(libraries)
    for form, asked in (("optimized", args.optimized), ("int8", args.int8)):
        kinds += [f"{form}-{library}" for library in libraries if asked]
    if args.bf16 and args.openvino:
        kinds += ["openvino-bf16", *(["int8-openvino-bf16"] if args.int8 else [])]
    return kinds


if __name__ == "__main__":
    main()
