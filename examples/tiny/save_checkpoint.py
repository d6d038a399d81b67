"""Write what was trained as a checkpoint that transformers and `sdrpn export` read.

python examples/tiny/save_checkpoint.py RUNS/C CHECKPOINT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from networks import CHAT_TEMPLATE, SPEC, make_tokenizer
from saved_weights import llava_from, read_weights, write_heads
from tiny_llava import TinyLlava

from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.host.atomic import replacing_directory


def write_checkpoint(run: Path, out: Path) -> None:
    """Half precision, with tokenizer, chat template and preprocessing."""
    model = TinyLlava()
    model.load_state_dict(read_weights(run))
    with replacing_directory(out) as folder:
        torch.nn.Module.half(llava_from(model)).save_pretrained(folder)
        write_heads(model, folder)
        make_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens})
        side = clip_of(SPEC).image_size_px
        write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": "CLIPImageProcessor",
                "crop_size": {"height": side, "width": side},
                "size": {"shortest_edge": side},
                "image_mean": list(clip_of(SPEC).image_mean),
                "image_std": list(clip_of(SPEC).image_std),
                "resample": 3,
            },
        )


def write_json(path: Path, value: object) -> None:
    """Indented, as transformers writes its files."""
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_checkpoint(args.run, args.out)
