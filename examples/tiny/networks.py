"""The small LLaVA: real CLIP and LLaMA classes of transformers at a few million parameters, and its vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from starting_weights import CARRIED, set_attention, wave_positions
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec
from sdrpn.tags.questions import SEEN_FRAMES
from sdrpn.tags.scene import BORDERS, COLOURS, SHAPES

SPACE = "▁"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    "{% endif %}{% endfor %}"
)
SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
UNK_ID, BOS_ID, EOS_ID, IMAGE_ID, PAD_ID = range(len(SPECIAL))


def vocabulary() -> list[str]:
    """Every token, in the order of its id: special ones, digits, and whole words with a space before them."""
    words = {"user", "assistant", ":", "?", ".", ",", *COLOURS, *BORDERS, *SHAPES}
    for frames in SEEN_FRAMES.values():
        for frame in frames:
            words.update(frame.replace("{}", "").split())
    return [*SPECIAL, *"0123456789", SPACE, *(SPACE + word for word in sorted(words))]


def make_tokenizer() -> Tokenizer:
    """Whole words in lower case, punctuation and digits one by one; what is not in the vocabulary is unknown."""
    tokens = {token: token_id for token_id, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Metaspace(SPACE, prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    return tokenizer


SPEC = ModelSpec(
    vision=VisionSpec(image_size_px=168, patch_size_px=14, width=128, layers=5, heads=4, mlp_width=512),
    llm=LlmSpec(
        vocabulary=len(vocabulary()),
        width=160,
        layers=6,
        heads=5,
        kv_heads=5,
        head_dim=32,
        mlp_width=432,
        max_context=1024,
    ),
    tap_layer=3,
    rpn=RpnSpec(layers=2),
    prompt=PromptSpec(
        template=CHAT_TEMPLATE,
        image_token_id=IMAGE_ID,
        bos_token_id=BOS_ID,
        eos_token_ids=(EOS_ID,),
        pad_token_id=PAD_ID,
    ),
)


class VisionTower(nn.Module):
    """CLIP's tower up to its last layer but one, on whole images or on windows of the grid."""

    def __init__(self) -> None:
        super().__init__()
        vision = clip_of(SPEC)
        config = CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.mlp_width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=vision.image_size_px,
            patch_size=vision.patch_size_px,
            hidden_act=vision.activation,
            initializer_factor=1.0,
        )
        self.clip = CLIPVisionModel(config)
        self.clip.config._attn_implementation = "sdpa"
        self.set_starting_weights()

    @torch.no_grad()
    def set_starting_weights(self) -> None:
        """Instead of CLIP's own random ones, with which a tower of this size learns to read several times slower."""
        model: Any = getattr(self.clip, "vision_model", self.clip)
        waves = wave_positions(clip_of(SPEC).grid_side, clip_of(SPEC).width)
        model.embeddings.position_embedding.weight[1:] = waves
        for layer in model.encoder.layers:
            set_attention(layer.self_attn, clip_of(SPEC).heads, carried=-CARRIED)

    def forward(self, pixels: Tensor, corner_rc: tuple[int, int] = (0, 0)) -> Tensor:
        """Features of the patches, without the class token.

        Args:
            pixels: (B,3,r,r), r a multiple of the patch size
            corner_rc: where on the grid a smaller picture lies: its patches get the positions from there
        Returns: (B,g*g,width)
        """
        model = getattr(self.clip, "vision_model", self.clip)
        embeddings = model.embeddings
        patches = embeddings.patch_embedding(pixels)  # (B,width,g,g)
        side, row, column = patches.shape[-1], *corner_rc
        table = embeddings.position_embedding.weight  # (1+G*G,width)
        grid = table[1:].view(clip_of(SPEC).grid_side, clip_of(SPEC).grid_side, -1)
        positions = grid[row : row + side, column : column + side].flatten(0, 1)
        first = (embeddings.class_embedding + table[0]).expand(len(pixels), 1, -1)
        hidden = torch.cat((first, patches.flatten(2).transpose(1, 2) + positions), dim=1)
        hidden = model.pre_layrnorm(hidden)
        for layer in model.encoder.layers[: clip_of(SPEC).used_layers]:
            output = layer(hidden, attention_mask=None)
            hidden = output[0] if isinstance(output, tuple) else output
        features: Tensor = hidden[:, 1:]
        return features


def make_projector() -> nn.Sequential:
    """Two layers between the tower and the LLM."""
    width = SPEC.llm.width
    return nn.Sequential(nn.Linear(clip_of(SPEC).width, width), nn.GELU(), nn.Linear(width, width))


def make_llm() -> LlamaForCausalLM:
    """A LLaMA with its usual initialisation."""
    llm = SPEC.llm
    config = LlamaConfig(
        vocab_size=llm.vocabulary,
        hidden_size=llm.width,
        intermediate_size=llm.mlp_width,
        num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads,
        head_dim=llm.head_dim,
        max_position_embeddings=llm.max_context,
        rms_norm_eps=llm.rms_norm_eps,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        tie_word_embeddings=False,
        initializer_range=0.04,
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)
