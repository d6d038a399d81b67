"""What the native image path saves: the first look and one crop of 1, 12 and 48 megapixels, against Pillow.

Both sides take turns in every round; figures are medians over the rounds. Pillow's side is given an array's pixels as a
Pillow image already, so that no conversion counts against it. Prints a Markdown table.

    python benchmarks/image_path.py                                  # arrays and JPEG, one and two threads
    python benchmarks/image_path.py --patches                        # patches of Qwen2.5-VL, 256 to 576 image tokens
    python benchmarks/image_path.py --roi-map BUNDLE --scenes 100    # what jpeg="fast" does to the RoI map
    python benchmarks/image_path.py --roi-map BUNDLE PICTURE ...     # the same with these pictures
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from sdrpn.compare.overlap import overlap
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.families.qwen.vision_spec import Qwen25Vision
from sdrpn.host.native_modules import native_module
from sdrpn.images.image import base_pixels, crop_pixels, open_image, read_jpeg_header
from sdrpn.images.patches import crop_patches, picture_patches
from sdrpn.method.grids import Box
from sdrpn.runtime import Answer, Session
from sdrpn.runtime.pictures.picture import JpegMode, PictureSource, open_picture
from sdrpn.tags.task import tag_samples

VISION = VisionSpec(image_size_px=336, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
SIZES = {"1": (1152, 864), "12": (4000, 3000), "48": (8000, 6000)}
PATCHED = Qwen25Vision(
    patch_size_px=14,
    width=32,
    layers=1,
    heads=2,
    mlp_width=64,
    least_pixels=256 * 28**2,
    most_pixels=576 * 28**2,
    image_mean=VISION.image_mean,
    image_std=VISION.image_std,
    full_layers=(0,),
)
ARRAY_TARGET, JPEG_TARGET = 3.0, 2.0  # times Pillow's speed: arrays with two threads; parts of a 48-megapixel JPEG

ENLARGED_PX = 2688  # eight times 336
SMALL_BYTES, SMALL_ROUNDS = 10_000_000, 5

Work = Callable[[], object]


def photograph(size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Smooth shapes with grain, which JPEG compresses to about as many bits a pixel as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (size_wh[1] // 8, size_wh[0] // 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size_wh, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += rng.integers(-6, 7, pixels.shape, dtype=np.int16)
    return pixels.clip(0, 255).astype(np.uint8)


def middle_box(size_wh: tuple[int, int]) -> Box:
    """A region of interest: 3/20 of each side, in the middle."""
    (width, height), part = size_wh, 0.15
    left, top = int(width * (0.5 - part / 2)), int(height * (0.5 - part / 2))
    return left, top, left + int(width * part), top + int(height * part)


def with_pillow(source: Image.Image | bytes, box: Box | None, first_look: bool = True) -> None:
    image = source if isinstance(source, Image.Image) else open_image(source)
    if first_look:
        base_pixels(image, VISION)
    if box is not None:
        crop_pixels(image, box, VISION)


def with_ours(
    source: PictureSource, box: Box | None, threads: int, jpeg: JpegMode = "exact", first_look: bool = True
) -> None:
    out = np.empty((1, 3, 336, 336), np.float32)
    picture = open_picture(source, threads=threads, jpeg=jpeg)
    if first_look:
        picture.write_base(VISION, out)
    if box is not None:
        picture.write_crops([box], VISION, out)


def array_works(pixels: npt.NDArray[np.uint8], threads: int) -> dict[str, tuple[Work, Work]]:
    """Name -> (Pillow, ours)."""
    image, box = Image.fromarray(pixels), middle_box((pixels.shape[1], pixels.shape[0]))
    return {
        "array, first look": (lambda: with_pillow(image, None), lambda: with_ours(pixels, None, threads)),
        "array, crop": (
            lambda: with_pillow(image, box, first_look=False),
            lambda: with_ours(pixels, box, threads, first_look=False),
        ),
        "array, both": (lambda: with_pillow(image, box), lambda: with_ours(pixels, box, threads)),
    }


def patch_works(pixels: npt.NDArray[np.uint8], threads: int) -> dict[str, tuple[Work, Work]]:
    """The same for a model that sees patches: a whole picture, and a crop with the budget of a picture."""
    image, box = Image.fromarray(pixels), middle_box((pixels.shape[1], pixels.shape[0]))
    picture = open_picture(pixels, threads=threads)
    whole, crop = (np.empty_like(made) for made in (picture_patches(image, PATCHED), crop_patches(image, box, PATCHED)))

    def theirs(out: npt.NDArray[np.float32], patches: Callable[[], npt.NDArray[np.float32]]) -> None:
        out[...] = patches()  # the input buffer

    return {
        "array, patches": (
            lambda: theirs(whole, lambda: picture_patches(image, PATCHED)),
            lambda: picture.write_patches(PATCHED, whole),
        ),
        "array, patches of a crop": (
            lambda: theirs(crop, lambda: crop_patches(image, box, PATCHED)),
            lambda: picture.write_crop_patches(box, PATCHED, crop),
        ),
    }


def as_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_works(pixels: npt.NDArray[np.uint8], threads: int) -> dict[str, tuple[Work, Work]]:
    data, box = as_jpeg(pixels, quality=88), middle_box((pixels.shape[1], pixels.shape[0]))
    return {
        "JPEG, both, exact": (lambda: with_pillow(data, box), lambda: with_ours(data, box, threads)),
        "JPEG, crop by parts": (
            lambda: with_pillow(data, box, first_look=False),
            lambda: with_ours(data, box, threads, "fast", first_look=False),
        ),
        "JPEG, both, fast": (lambda: with_pillow(data, box), lambda: with_ours(data, box, threads, "fast")),
    }


def seconds(work: Work) -> tuple[float, float]:
    """On the wall, and of all processors together."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(pillow: Work, ours: Work, rounds: int) -> dict[str, float]:
    pairs = [(seconds(pillow), seconds(ours)) for _ in range(rounds + 1)][1:]  # the first round warms up
    return {
        "Pillow ms": 1000 * statistics.median(theirs[0] for theirs, _ in pairs),
        "ours ms": 1000 * statistics.median(our[0] for _, our in pairs),
        "times as fast": statistics.median(theirs[0] / our[0] for theirs, our in pairs),
        "processor time, ratio": statistics.median(theirs[1] / our[1] for theirs, our in pairs),
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for megapixels in args.megapixels:
        pixels = photograph(SIZES[megapixels])
        for threads in args.threads:
            squares = {} if args.patches else {**array_works(pixels, threads), **jpeg_works(pixels, threads)}
            works = squares or patch_works(pixels, threads)
            for name, (pillow, ours) in works.items():
                print(f"\r{megapixels} MP, {threads} thread(s): {name:24}", end="", file=sys.stderr)
                # Small pictures take milliseconds: more rounds, so that one interruption counts for little.
                rounds = args.rounds * (SMALL_ROUNDS if pixels.size < SMALL_BYTES else 1)
                row = {"megapixels": int(megapixels), "work": name, "threads": threads}
                rows.append({**row, **compare(pillow, ours, rounds)})
    print(file=sys.stderr)
    return rows


@dataclass(frozen=True)
class PictureQuestion:
    """A picture as JPEG, and what is asked about it."""

    name: str
    jpeg: bytes
    text: str


def scene_questions(count: int) -> list[PictureQuestion]:
    """The task that the small model is made for: rendered tags, 840 x 840."""
    samples = tag_samples("heldout", count, seed=7)
    return [
        PictureQuestion(f"scene {sample.index}", as_jpeg(np.asarray(sample.image), 90), sample.question)
        for sample in samples
    ]


def picture_questions(paths: list[Path]) -> list[PictureQuestion]:
    return [PictureQuestion(path.name, jpeg_of(path), "what is the code on the red tag ?") for path in paths]


def jpeg_of(path: Path) -> bytes:
    """The file; of another format than JPEG the picture, enlarged so that there is something to leave out."""
    data = path.read_bytes()
    if read_jpeg_header(data) is not None:
        return data
    image = open_image(path)
    factor = max(1, -(-ENLARGED_PX // max(image.size)))
    return as_jpeg(np.asarray(image.resize((image.width * factor, image.height * factor))), 90)


def ask(session: Session, question: PictureQuestion) -> Answer:
    if session.bundle.manifest.tokenizer is not None:
        return session.answer(question.jpeg, question.text, max_new_tokens=1)
    before, after = tuple(range(3, 38)), tuple(range(40, 80))  # a model of random weights
    return session.answer_ids(question.jpeg, before, after, max_new_tokens=1)


def roi_map_change(bundle: str, questions: list[PictureQuestion]) -> list[dict[str, Any]]:
    """What the first look through DCT scaling does to the RoI map and the boxes."""
    rows = []
    with Session.open(bundle) as exact, Session.open(bundle, jpeg="fast") as fast:
        for question in questions:
            answers = [ask(session, question) for session in (exact, fast)]
            first, second = (np.asarray(answer.roi_map, np.float64).ravel() for answer in answers)
            row = {
                "picture": question.name,
                "cosine": float(first @ second / np.linalg.norm(first) / np.linalg.norm(second)),
                "largest change of a cell": float(np.abs(first - second).max()),
                "box IoU": overlap(*(answer.boxes_xyxy_px for answer in answers)),
            }
            rows.append(row)
            print(f"\r{len(rows)} of {len(questions)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return rows + summary(rows)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("cosine", "largest change of a cell", "box IoU")
    values = {name: [row[name] for row in rows] for name in names}
    return [
        {"picture": title, **{name: float(figure(values[name])) for name in names}}
        for title, figure in (
            ("lowest", min),
            ("median", statistics.median),
            ("mean", statistics.mean),
            ("highest", max),
        )
    ]


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Every target that was not kept."""
    lines = []
    for row in rows:
        times, work = row["times as fast"], row["work"]
        array = work.startswith("array") and row["threads"] == 2 and times < ARRAY_TARGET
        part = work == "JPEG, crop by parts" and row["megapixels"] == 48 and times < JPEG_TARGET
        if array or part:
            lines.append(f"{work}, {row['megapixels']} MP, {row['threads']} thread(s): {times:.1f} x")
    return lines


def machine() -> str:
    libraries = f"Python {platform.python_version()}, NumPy {np.__version__}, Pillow {PIL.__version__}"
    jpeg = f"libjpeg-turbo {features.version_feature('libjpeg_turbo')} in Pillow"
    hardware = f"{processor()} ({platform.machine()}), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{hardware}; {libraries}, {jpeg}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "a processor without a name"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [tuple(rows[0]), ("---",) * len(rows[0])]
    lines += [
        tuple(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()) for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megapixels", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--patches", action="store_true", help="patches in place of squares")
    parser.add_argument("--roi-map", nargs="+", metavar="PATH", help="a bundle, and perhaps pictures")
    parser.add_argument("--scenes", type=int, default=0, help="with --roi-map: so many rendered scenes, as JPEG")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if native_module() is None or native_module("_native_jpeg") is None:
        print("the native modules are not compiled here: there is nothing to compare", file=sys.stderr)
        return 2
    if args.roi_map:
        bundle, *pictures = args.roi_map  # as text: `demo` is a name
        rows = roi_map_change(
            bundle, picture_questions([Path(name) for name in pictures]) + scene_questions(args.scenes)
        )
    else:
        rows = measure(args)
    if args.json:
        print(json.dumps({"machine": machine(), "rounds": args.rounds, "rows": rows}, indent=1))
    else:
        print(f"{machine()}\n\n{table(rows)}")
    lines = [] if args.roi_map else missed(rows)
    print("\n".join(f"missed: {line}" for line in lines), file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
