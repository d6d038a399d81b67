"""Small tokenizers of the two families that language models have."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors


def llama_like(*, adds_bos: bool = True, image: bool = False) -> Tokenizer:
    """Characters and byte fallback after a metaspace, as LLaMA's sentencepiece model has them."""
    words = ["<unk>", "<s>", "</s>", "<image>" if image else "<unused>"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    words += ["▁", *map(chr, range(33, 127)), "é", "▁t", "th", "▁th", "▁USER", "US", "USE", "ER"]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + (["<image>"] if image else [])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return tokenizer


def gpt_like() -> Tokenizer:
    """Byte-level pieces, as GPT-2, LLaMA 3 and Qwen have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<bos>", "<eos>", "<image>", *alphabet, "th", "Ġth"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("Ġ", "th")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in words[:4]])
    return tokenizer
