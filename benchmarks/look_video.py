"""`sdrpn look` on a minute of video: tags that move over a background, and how often the boxes hit the one asked about.

python benchmarks/look_video.py --out runs/look-video    # a video, its looks, an annotated video, and the figures

A frame is hit where a box contains the middle of the tag that the question names, and covers at most a fifth of the
picture. Jitter is the median of how far the middle of the box moves against the tag from one frame to the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sdrpn.frames.video_writer import VideoWriter
from sdrpn.tags.motion import Box, MovingScene, moving_scene

LARGEST_SHARE = 0.2


def main() -> int:
    """Make the video, look at it, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--upscale", default="bbox", help="how several regions become boxes")
    parser.add_argument("--track", action="store_true")
    parser.add_argument("--threads", default="1")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    scene = moving_scene(args.seed)
    video = write_video(args.out / "tags.mp4", scene, args.seconds, args.fps)
    colours = [tag.colour for tag in scene.tags][:2]
    looks = look(args, video, [question(colour) for colour in colours])
    figures = {colour: measure(looks, scene, number, colour) for number, colour in enumerate(colours)}
    print(json.dumps({"frames": len(looks), "fps": args.fps, "track": args.track, "tags": figures}, indent=1))
    return 0 if all(figure["hit"] >= 0.9 for figure in figures.values()) else 1


def question(colour: str) -> str:
    """One that the small model was trained on."""
    return f"what is the code on the {colour} tag ?"


def write_video(path: Path, scene: MovingScene, seconds: float, fps: float) -> Path:
    """Frames at a steady rate."""
    with VideoWriter(path, fps=fps) as writer:
        for number in range(round(seconds * fps)):
            writer.add(scene.frame(number / fps), number / fps)
    return path


def look(args: argparse.Namespace, video: Path, questions: list[str]) -> list[dict[str, Any]]:
    """The lines that the command prints."""
    command = [sys.executable, "-m", "sdrpn", "look", args.bundle, str(video), *questions]
    options = ["--jsonl", "--save-video", "--out", str(args.out / "looks"), "--threads", args.threads]
    options += ["--upscale", args.upscale]
    done = subprocess.run(
        [*command, *options, *(["--track"] if args.track else [])], stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure(looks: list[dict[str, Any]], scene: MovingScene, number: int, colour: str) -> dict[str, float]:
    """The share of frames that are hit, how far boxes lie beside the tag, and how they jitter."""
    hits, beside = 0, []
    for found in looks:
        truth = scene.boxes(found["time_s"])[colour]
        middles = [middle(box) for box in boxes(found, number) if fits(box, found["image_wh"]) and hit(box, truth)]
        hits += bool(middles)
        beside.append(np.subtract(middles[0], middle(truth)) if middles else np.full(2, np.nan))
    offsets = np.array(beside)
    steps = np.linalg.norm(np.diff(offsets, axis=0), axis=1)
    return {
        "hit": hits / len(looks),
        "beside_px": float(np.nanmedian(np.linalg.norm(offsets, axis=1))),
        "jitter_px": float(np.nanmedian(steps)),
        "jitter_p90_px": float(np.nanpercentile(steps, 90)),
    }


def boxes(found: dict[str, Any], number: int) -> list[Box]:
    """Those of a question."""
    return [tuple(region["xyxy_px"]) for region in found["looks"][number]["boxes"]]


def fits(box: Box, image_wh: list[int]) -> bool:
    """Whether a box says anything."""
    return (box[2] - box[0]) * (box[3] - box[1]) <= LARGEST_SHARE * image_wh[0] * image_wh[1]


def hit(box: Box, truth: Box) -> bool:
    """Whether it contains the middle of the tag."""
    x, y = middle(truth)
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def middle(box: Box) -> tuple[float, float]:
    """x, y."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


if __name__ == "__main__":
    sys.exit(main())
