"""Write what was trained as a checkpoint that transformers and `sdrpn export` read.

python examples/tiny/save_checkpoint.py RUNS/C CHECKPOINT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from networks import CHAT_TEMPLATE, EOS_ID, IMAGE_ID, PAD_ID, SPEC, make_tokenizer
from train_language import TinyLlava
from transformers import LlavaConfig, LlavaForConditionalGeneration

from sdrpn.atomic import replacing_directory


def llava_from(model: TinyLlava) -> LlavaForConditionalGeneration:
    """The same weights under transformers' LLaVA."""
    config = LlavaConfig(
        vision_config=model.tower.clip.config,
        text_config=model.llm.config,
        image_token_index=IMAGE_ID,
        image_seq_length=SPEC.vision.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=SPEC.vision.select_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(model.tower.clip.state_dict())
    llava.model.language_model.load_state_dict(model.llm.model.state_dict())
    llava.lm_head.load_state_dict(model.llm.lm_head.state_dict())
    first, _, second = model.projector
    llava.model.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
    llava.model.multi_modal_projector.linear_2.load_state_dict(second.state_dict())
    llava.generation_config.eos_token_id = EOS_ID
    llava.generation_config.pad_token_id = PAD_ID
    return llava


def write_checkpoint(run: Path, out: Path) -> None:
    """Half precision, with tokenizer, chat template and preprocessing."""
    model = TinyLlava()
    state = torch.load(run / "state.pt", weights_only=True)["modules"]
    model.load_state_dict(state, strict=False)
    with replacing_directory(out) as folder:
        torch.nn.Module.half(llava_from(model)).save_pretrained(folder)
        make_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens})
        side = SPEC.vision.image_size_px
        write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": "CLIPImageProcessor",
                "crop_size": {"height": side, "width": side},
                "size": {"shortest_edge": side},
                "image_mean": list(SPEC.vision.image_mean),
                "image_std": list(SPEC.vision.image_std),
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
