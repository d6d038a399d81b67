"""The whole way in a minute, with nothing but this repository: checkpoint, bundle, question, answer, picture.

A small model with random weights is made on the spot, so its answer is noise and where it looks means nothing; every
step is the real one. Give a checkpoint of your own to see more.

    python examples/quickstart.py
    python examples/quickstart.py --checkpoint path/to/sd-rpn-checkpoint --question "What does the sign say?"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scene import render_scene

from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.cli.main import main as sdrpn
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec

# LLaVA-1.5's shape in small: 336 px, 24 x 24 cells, the tap in the middle, three RPN layers.
SMALL = ModelSpec(
    vision=VisionSpec(image_size_px=336, patch_size_px=14, width=128, layers=4, heads=4, mlp_width=512),
    llm=LlmSpec(vocabulary=512, width=256, layers=8, heads=4, kv_heads=4, head_dim=64, mlp_width=688, max_context=4096),
    tap_layer=4,
    rpn=RpnSpec(layers=3),
)
# With these an untrained RPN happens to point at something, so that every step has something to do.
SEED, ROI_GAIN = 11, 3.0


def main() -> int:
    """Run the steps as the command line would; each is printed before it runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything made (default: out)")
    parser.add_argument("--checkpoint", type=Path, help="use this checkpoint in place of random weights")
    parser.add_argument("--question", default="What does the sign say?")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    image, bundle, overlay = args.out / "street.jpg", args.out / "bundle", args.out / "overlay.png"
    say(f"drawing {image} ...")
    scene = render_scene()
    scene.image.save(image, quality=88)
    say(f"its sign says {scene.sign_text!r} at {scene.sign_box_xyxy_px}")
    checkpoint = args.checkpoint or args.out / "random-checkpoint"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, SMALL, seed=SEED, with_tokenizer=True, roi_gain=ROI_GAIN)
    if args.checkpoint is None:
        say("random weights: the answer is noise, and where it looks means nothing; the steps are the real ones")
    ask = ["ask", str(bundle), str(image), args.question, "--max-new-tokens", "12"]
    for command in (
        ["export", str(checkpoint), "--out", str(bundle)],
        ["inspect", str(bundle)],
        [*ask, "--no-roi"],
        [*ask, "--overlay", str(overlay)],
    ):
        say(f"$ sdrpn {' '.join(repr(word) if ' ' in word else word for word in command)}")
        code = sdrpn(command)
        if code:
            return code
    return 0


def say(line: str) -> None:
    """Print at once, so that the order with stderr is kept."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
