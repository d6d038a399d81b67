"""Make what the package ships: the bundle that is called `demo`, and the scene of `sdrpn demo`.

    python examples/demo/ship.py --rpn runs/gate      # keep this RPN and its gate here, in fp16, and ship them
    python examples/demo/ship.py                      # from the checkpoint and the RPN that are kept: the same bytes

The base model is the checkpoint in examples/tiny/checkpoint. Needs the [export] extra, and matplotlib for its fonts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle
from sdrpn.bundle.shipped import CHECKPOINT, DEMO_BUNDLE, RPN
from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.rpn_file import read_rpn, write_rpn
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host.atomic import replacing_directory, replacing_file
from sdrpn.tags import tag_sample
from sdrpn.tags.shipped_scene import DESCRIPTION_NAME, SCENE_FOLDER, DemoScene

# 8 bits: checkpoint, RPN, gate and bundle together stay below 13.5 MB. 16: the MLP has 432 inputs, which 32 does not
# divide. RPN, gate and head stay in fp16: they decide whether and where to look, and which digit is said. `primitive`
# is what ONNX Runtime runs before 1.24, which is all that Python 3.10 has; it adds graphs, and no weights.
OPTIONS = ExportOptions(precision="int8", block=16, keep=("lm_head", "rpn"))
SCENE = ("heldout", 2025, 0)  # split, seed, index


def keep_rpn(trained: Path) -> None:
    """Write a trained RPN, and its gate, beside this script, in fp16, which is what a bundle holds."""
    read = read_rpn(trained)
    with open_checkpoint(CHECKPOINT, rpn=trained) as source:
        RPN.parent.mkdir(parents=True, exist_ok=True)
        write_rpn(RPN.parent, source.spec, source.read, dtype="float16", note=read.note, policy=read.policy)


def ship_bundle(folder: Path) -> None:
    """Export checkpoint and RPN into an empty or a new folder: `fused`, and what CPUs need of `primitive`."""
    export_bundle(CHECKPOINT, folder, OPTIONS, rpn=RPN)
    export_bundle(CHECKPOINT, folder, replace(OPTIONS, dialect="primitive"), rpn=RPN)
    drop_variant(folder, "primitive-int8")


def drop_variant(folder: Path, name: str) -> None:
    """Take a variant out of a bundle, with the files that no other one has."""
    manifest = open_bundle(folder).manifest
    variants = {key: variant for key, variant in manifest.variants.items() if key != name}
    used = {file for variant in variants.values() for file in variant.files} | {manifest.tokenizer}
    for file in manifest.files.keys() - used:
        (folder / file).unlink()
    files = {file: info for file, info in manifest.files.items() if file in used}
    (folder / MANIFEST_NAME).write_text(replace(manifest, variants=variants, files=files).to_text(), encoding="utf-8")


def ship_scene(folder: Path) -> DemoScene:
    """Render the scene and describe it."""
    split, seed, index = SCENE
    sample = tag_sample(split, seed, index)
    scene = DemoScene(folder / "scene.png", sample.question, sample.answer, sample.box_xyxy_px, split, seed, index)
    with replacing_file(scene.picture) as path:
        sample.image.save(path, format="PNG", optimize=True)
    with replacing_file(folder / DESCRIPTION_NAME) as path:
        path.write_text(scene.to_text(), "utf-8")
    return scene


def main() -> None:
    """Keep the RPN that is given, and make everything that is shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rpn", type=Path, metavar="DIR", help="folder that `sdrpn train` wrote")
    args = parser.parse_args()
    if args.rpn is not None:
        keep_rpn(args.rpn)
    with replacing_directory(DEMO_BUNDLE, exist_ok=True) as folder:
        ship_bundle(folder)
    scene = ship_scene(SCENE_FOLDER)
    size_bytes = sum(path.stat().st_size for path in DEMO_BUNDLE.rglob("*") if path.is_file())
    print(f"{DEMO_BUNDLE}: {size_bytes / 1e6:.1f} MB")
    print(f"{scene.picture}: {scene.question} {scene.expected}")


if __name__ == "__main__":
    main()
