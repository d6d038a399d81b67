"""The tower of Qwen2.5-VL in ONNX Runtime and OpenVINO against transformers' own with sdpa, of one release or several.

The model is that of `qwen.py`: 8 blocks, 384 wide, full attention in two of them; random weights. Every side runs in a
process of its own, with one thread, and all take turns; they have to give the same image tokens. Figures are medians of
the CPU time, which other processes disturb less than the time that passes.

    OMP_NUM_THREADS=1 python benchmarks/qwen_tower.py
    OMP_NUM_THREADS=1 python benchmarks/qwen_tower.py --optimized --openvino --python venv-4.51/bin/python

An interpreter of `--python` needs torch and transformers, not sdrpn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
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


def transformers_tower(folder: Path) -> Tower:
    """The tower of the checkpoint in `folder`, by the transformers of this process."""
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
    grid = torch.from_numpy(inputs["grid"])

    class Transformers:
        name = f"transformers {transformers.__version__}"

        def run(self) -> Any:
            with torch.inference_mode():
                found = tower(frames, grid_thw=grid)
            return getattr(found, "pooler_output", found).numpy()

    return Transformers()


def openvino_tower(folder: Path) -> Tower:
    """The vision graph of the bundle in `folder`, as the backend `openvino` runs it."""
    import openvino

    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.runtime.backends.host_buffer import HostBuffer
    from sdrpn.runtime.backends.openvino import OpenVinoBackend

    bundle = open_bundle(folder / "bundle")
    graph = bundle.variant("fused-fp32").graphs["vision"]
    runner = OpenVinoBackend(threads=1).load(graph, bundle.file(graph.file))
    inputs = np.load(folder / "inputs.npz")
    feeds = {name: HostBuffer(inputs[name]) for name in runner.inputs}
    cells = len(inputs["pixel_values"]) // 4
    embeds = HostBuffer.zeros((1, cells, bundle.spec.llm.width), "float32")
    step = runner.bind(feeds, {"image_embeds": embeds})

    class OpenVino:
        name = f"openvino {openvino.__version__.partition('-')[0]}"

        def run(self) -> Any:
            step()
            return embeds.array[0]

    return OpenVino()


def our_tower(folder: Path, *, optimized: bool) -> Tower:
    """The vision graph of the bundle in `folder`."""
    import onnxruntime

    from sdrpn.export.ort_vision import multi_head_graph

    (path,) = (folder / "bundle").glob("vision.*.onnx")
    if optimized:
        (rewritten := path.with_suffix(".rewritten.onnx")).write_bytes(multi_head_graph(path) or b"")
        path = rewritten
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = np.load(folder / "inputs.npz")
    feeds = {declared.name: inputs[declared.name] for declared in session.get_inputs()}

    class Ours:
        name = f"onnxruntime {onnxruntime.__version__}" + (", as sdrpn optimize saves it" if optimized else "")

        def run(self) -> Any:
            return session.run(["image_embeds"], feeds)[0][0]

    return Ours()


TOWERS: dict[str, Callable[[Path], Tower]] = {
    "transformers": transformers_tower,
    "standard": lambda folder: our_tower(folder, optimized=False),
    "optimized": lambda folder: our_tower(folder, optimized=True),
    "openvino": openvino_tower,
}


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
        self.seconds: list[float] = []

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self._line()))

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


def measured(folder: Path, pythons: list[str], kinds: list[str], rounds: int) -> list[Side]:
    """Our sides and those of the interpreters, after so many rounds."""
    with ExitStack() as stack:
        sides: list[Side] = []
        for python, kind in [
            *((sys.executable, kind) for kind in kinds),
            *((each, "transformers") for each in pythons),
        ]:
            sides.append(Side(python, kind, folder))
            stack.callback(sides[-1].close)
        expected = np.load(folder / f"{sides[0].name}.npy")
        for side in sides[1:]:
            difference = float(np.abs(np.load(folder / f"{side.name}.npy") - expected).max() / np.abs(expected).max())
            if difference > MOST_DIFFERENCE:
                raise SystemExit(f"{side.name} gives other image tokens than {sides[0].name}, by {difference:.1e}")
        for _ in range(rounds + LEAST_RUNS):
            for side in sides:
                side.turn()
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="a further interpreter")
    parser.add_argument("--optimized", action="store_true", help="also the graph that `sdrpn optimize` saves")
    parser.add_argument("--openvino", action="store_true", help="also the backend openvino")
    parser.add_argument("--image", default="640x480", metavar="WxH")
    parser.add_argument("--image-tokens", default="256:576", metavar="LEAST:MOST")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        kind, folder = args.serve[0], Path(args.serve[1])
        serve(TOWERS[kind](folder), folder)
        return
    width, height = map(int, args.image.split("x"))
    least, most = map(int, args.image_tokens.split(":"))
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), (width, height), (least, most))
        kinds = ["standard", *(["optimized"] if args.optimized else []), *(["openvino"] if args.openvino else [])]
        sides = measured(Path(name), [sys.executable, *args.python], kinds, args.rounds)
        patches = len(np.load(Path(name) / "inputs.npz")["pixel_values"])
    medians = {side.name: statistics.median(side.seconds[LEAST_RUNS:]) for side in sides}
    ours = list(medians)[: len(kinds)]
    if args.json:
        times = {name: {mine: medians[name] / medians[mine] for mine in ours} for name in medians if name not in ours}
        report = {"format_version": 1, "patches": patches, "median_s": medians, "times_ours": times}
        print(json.dumps(report, indent=2))
        return
    print(f"{patches} patches, 1 thread, CPU time, medians of {args.rounds} runs in turns")
    for name, seconds in medians.items():
        ratios = "" if name in ours else ", " + ", ".join(f"{seconds / medians[mine]:.2f}" for mine in ours)
        print(f"{name}: {seconds * 1e3:.0f} ms{ratios and f'{ratios} times ours'}")


if __name__ == "__main__":
    main()
