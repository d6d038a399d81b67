"""From a checkpoint of LLaVA-1.5's size to an answer on this machine: seconds, memory and disk of every command.

    python benchmarks/large_model.py /data/large --steps checkpoint,int4,optimize,ask
    python benchmarks/large_model.py /data/large --steps fp16,int4-small,engines --size 7b
    python benchmarks/large_model.py /data/large --steps optimize,ask --for openvino --int8 lm_head,rpn,vision

Needs 50 GB of disk at 7B for the steps above. Each step is what a user would type, in a process of its own, and prints
a line of JSON. Steps that were done before are not needed again: their files stay in the folder.

    checkpoint    random weights in the official layout
    fp16, int4    `sdrpn export` with its defaults
    int4-small    blocks of 128, nothing kept above 4 bits, the vision tower in 8
    optimize      `sdrpn optimize` of the 4-bit bundle that --bundle names
    ask           one question about one picture, with a crop
    engines       `sdrpn build` of its four graphs
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shapes import SHAPES

HERE = Path(__file__).resolve().parent
SDRPN = (sys.executable, "-m", "sdrpn.cli.main")
POLL_S = 0.02
SMALL = ("--block", "128", "--keep", "none")


@dataclass
class Peak:
    """Most memory that one process held: in all, and at that moment its own and that of mapped files."""

    rss_bytes: int = 0
    anonymous_bytes: int = 0
    file_bytes: int = 0

    def see(self, pid: int) -> None:
        """Look at /proc once; a process that is gone changes nothing."""
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        found = {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"(\w+):\s+(\d+) kB", text)}
        if found.get("VmRSS", 0) > self.rss_bytes:
            self.rss_bytes, self.anonymous_bytes = found["VmRSS"], found["RssAnon"]
            self.file_bytes = found["RssFile"] + found["RssShmem"]


def watched(command: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What it printed, and what it took. Raises SystemExit where it fails."""
    start, peak = time.perf_counter(), Peak()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak.see(process.pid)
            time.sleep(POLL_S)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return printed, {"seconds": round(time.perf_counter() - start, 1), **vars(peak)}


def write_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    script = str(HERE / "random_checkpoint.py")
    _, took = watched((sys.executable, script, str(args.folder / "checkpoint"), "--size", args.size))
    return {**took, "disk_bytes": size_of(args.folder / "checkpoint")}


def exporting(bundle: str, *options: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def step(args: argparse.Namespace) -> dict[str, Any]:
        out = args.folder / bundle
        _, took = watched((*SDRPN, "export", str(args.folder / "checkpoint"), "--out", str(out), *options))
        return {**took, "disk_bytes": size_of(out)}

    return step


def optimize(args: argparse.Namespace) -> dict[str, Any]:
    options = ["--variant", args.variant, "--for", args.library, *(("--int8", args.int8) if args.int8 else ())]
    printed, took = watched((*SDRPN, "optimize", str(args.folder / args.bundle), *options, "--json"))
    saved = json.loads(printed)
    return {**took, "disk_bytes": saved["size_bytes"], "mapped_bytes": saved["mapped_bytes"]}


def ask(args: argparse.Namespace) -> dict[str, Any]:
    """The threshold lets a random RPN crop."""
    picture = args.folder / "picture.png"
    if not picture.exists():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (1008, 1344, 3), dtype=np.uint8)).save(picture)
    options = ("--variant", args.variant, "--max-new-tokens", "16", "--threshold", "-0.5", "--no-verify", "--json")
    run = ("--backend", args.library, *(("--kv-cache", args.kv_cache) if args.kv_cache else ()))
    question = "What does the sign say?"
    printed, took = watched((*SDRPN, "ask", str(args.folder / args.bundle), str(picture), question, *options, *run))
    answer = json.loads(printed)
    return {**took, **{name: answer[name] for name in ("boxes_xyxy_px", "roi_token_count", "timings")}}


def build(args: argparse.Namespace) -> dict[str, Any]:
    bundle = args.folder / args.bundle
    printed, took = watched((*SDRPN, "build", str(bundle), "--target", args.target, "--max-context", "2048", "--json"))
    return {**took, "engines": json.loads(printed)}


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "checkpoint": write_checkpoint,
    "fp16": exporting("fp16", "--precision", "fp16"),
    "int4": exporting("int4", "--precision", "int4"),
    "int4-small": exporting("int4-small", "--precision", "int4", *SMALL),
    "optimize": optimize,
    "ask": ask,
    "engines": build,
}


def size_of(folder: Path) -> int:
    """Bytes of all files, with hard links counted once."""
    files = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(files.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", default="checkpoint,int4,optimize,ask")
    parser.add_argument("--size", choices=SHAPES, default="7b")
    parser.add_argument("--bundle", choices=("fp16", "int4", "int4-small"), default="int4")
    parser.add_argument("--variant", default="fused-int4-cpu")
    parser.add_argument("--target", default="rtx-4090")
    libraries = ("onnxruntime", "openvino")
    parser.add_argument("--for", dest="library", choices=libraries, default=libraries[0], help="for optimize and ask")
    parser.add_argument("--int8", default="", help="for optimize: parts to put in 8 bits")
    parser.add_argument("--kv-cache", help="for ask with openvino: int8")
    args = parser.parse_args()
    unknown = [name for name in args.steps.split(",") if name not in STEPS]
    if unknown:
        raise SystemExit(f"--steps: there is no {unknown[0]}; expected {', '.join(STEPS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.steps.split(","):
        print(json.dumps({"step": name, "size": args.size, **STEPS[name](args)}), flush=True)


if __name__ == "__main__":
    main()
