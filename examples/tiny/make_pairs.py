"""Pictures and questions to label: no answers, no boxes, nothing of where the tags are.

python examples/tiny/make_pairs.py PAIRS [--pairs 10000] [--seed 1] [--split train] [--per-scene 1] [--with-answers]

PAIRS/images/*.jpg, PAIRS/questions.jsonl: {"id", "image", "question"}, and {"answer"} where it is asked for
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdrpn.host.atomic import replacing_directory
from sdrpn.tags.task import SPLITS, tag_samples
from sdrpn.terminal.progress import progress

JPEG_QUALITY = 92  # as a camera would store them


def write_pairs(
    out: Path, split: str, pairs: int, seed: int, per_scene: int = 1, *, with_answers: bool = False
) -> None:
    """Questions with their pictures; `per_scene` questions in a row share one."""
    with replacing_directory(out) as folder, progress("pairs", "pairs") as advance:
        (folder / "images").mkdir()
        with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
            for sample in tag_samples(split, pairs, seed, per_scene=per_scene):
                name = f"{sample.index // per_scene:06d}.jpg"
                if sample.index % per_scene == 0:
                    sample.image.save(folder / "images" / name, quality=JPEG_QUALITY)
                line: dict[str, str] = {
                    "id": f"{split}-{seed}-{sample.index}",
                    "image": name,
                    "question": sample.question,
                }
                if with_answers:
                    line["answer"] = sample.answer
                file.write(json.dumps(line) + "\n")
                advance(sample.index + 1, pairs)


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-scene", type=int, default=1, help="questions about one picture")
    parser.add_argument("--with-answers", action="store_true", help="true answers as well, to measure what they add")
    args = parser.parse_args()
    write_pairs(args.out, args.split, args.pairs, args.seed, args.per_scene, with_answers=args.with_answers)


if __name__ == "__main__":
    main()
