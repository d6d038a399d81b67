"""Graphs that are Python functions: what a decoder does with them can be counted in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdrpn.bundle.bundle import Bundle, FileInfo, GraphInfo, Manifest, TensorInfo, Variant
from sdrpn.bundle.graphs import graph_named
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.method.rope import rotary_frequencies, rotary_powers
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec
from sdrpn.runtime.backends.fake import Compute, FakeBackend
from sdrpn.runtime.backends.runner import Array
from sdrpn.runtime.decoder import Decoder

WIDTH, HEAD_DIM, VOCABULARY = 8, 4, 16
SPEC = ModelSpec(
    vision=VisionSpec(image_size_px=4, patch_size_px=2, width=4, layers=2, heads=1, mlp_width=4),
    llm=LlmSpec(
        vocabulary=VOCABULARY,
        width=WIDTH,
        layers=2,
        heads=2,
        kv_heads=2,
        head_dim=HEAD_DIM,
        mlp_width=4,
        max_context=256,
    ),
    tap_layer=1,
    rpn=RpnSpec(layers=1),
    prompt=PromptSpec(eos_token_ids=(2,)),
)
ROTARY = rotary_frequencies(SPEC.llm, rotary_powers(SPEC.llm))


def graph_infos(in_place: bool) -> dict[str, GraphInfo]:
    """The four graphs' signatures, with caches updated in place or given back as new rows."""
    hidden, images = ("batch", "sequence", WIDTH), SPEC.vision.image_tokens
    side = clip_of(SPEC).image_size_px
    return {
        "vision": GraphInfo(
            "vision",
            "vision.onnx",
            (TensorInfo("pixel_values", "float32", ("images", 3, side, side), "pixels"),),
            (TensorInfo("image_embeds", "float32", ("images", images, WIDTH), "image_embeds"),),
            (),
        ),
        "trunk": _decoder(
            "trunk", ("inputs_embeds", hidden), ("tap", hidden), ("key_cache.0", "value_cache.0"), in_place
        ),
        "tail": _decoder(
            "tail", ("tap", hidden), ("logits", ("batch", VOCABULARY)), ("key_cache.1", "value_cache.1"), in_place
        ),
        "rpn": _decoder(
            "rpn", ("tap", hidden), ("scores", ("batch", 2, "cache_length")), ("score_key_cache",), in_place
        ),
    }


def _decoder(
    name: str,
    first: tuple[str, tuple[int | str, ...]],
    result: tuple[str, tuple[int | str, ...]],
    caches: Sequence[str],
    in_place: bool,
) -> GraphInfo:
    cache_dims = ("batch", 2, "cache_length", HEAD_DIM)
    output_dims = cache_dims if in_place else ("batch", 2, "sequence", HEAD_DIM)
    suffix, role = ("_out", "cache") if in_place else ("_rows", "new_rows")
    graph = graph_named(name)
    indices: list[tuple[str, tuple[int | str, ...]]] = [
        ("row_index", ("batch", "sequence")),
        ("write_index", ("batch",)),
    ]
    if name != "trunk":
        indices.append(("last_index", ("batch",)))
    table = ("batch", "sequence", HEAD_DIM // 2)
    outputs = [TensorInfo(result[0], "float32", result[1], graph.gives)]
    if name == "rpn" and not in_place:
        outputs.append(TensorInfo("new_scores", "float32", ("batch", 2, "sequence"), "new_scores"))
    return GraphInfo(
        name,
        f"{name}.onnx",
        (
            TensorInfo(first[0], "float32", first[1], graph.takes),
            *(TensorInfo(n, "int64", dims, n) for n, dims in indices),
            *(TensorInfo(n, "float32", table, n) for n in ("rope_cos", "rope_sin")),
            *(TensorInfo(n, "float32", cache_dims, "cache") for n in caches),
        ),
        (*outputs, *(TensorInfo(n + suffix, "float32", output_dims, role, n) for n in caches)),
        (),
    )


class Script:
    """Functions for the graphs: taps repeat the embeddings, caches hold row numbers, tokens follow a script."""

    def __init__(self, tokens: Sequence[int] = (5, 6, 7), in_place: bool = True) -> None:
        self._tokens = list(tokens)
        self._in_place = in_place
        self.scores: Array = np.full((2, SPEC.vision.image_tokens), -9.0, np.float32)
        self.first_image_row = 1

    def graphs(self) -> Mapping[str, Compute]:
        return {"vision": self.vision, "trunk": self.trunk, "rpn": self.rpn, "tail": self.tail}

    def vision(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        means = feeds["pixel_values"].mean(axis=(1, 2, 3)).reshape(-1, 1, 1)
        return {"image_embeds": np.broadcast_to(means, (len(means), SPEC.vision.image_tokens, WIDTH))}

    def trunk(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"tap": feeds["inputs_embeds"], **self._write(feeds)}

    def tail(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        index = feeds["row_index"]
        logits = np.zeros((len(index), VOCABULARY), np.float32)
        for row, last, own in zip(logits, feeds["last_index"], index, strict=True):
            # Tokens are identified by row, so a prefill in pieces does not consume the script.
            row[self._tokens[int(own[last]) % len(self._tokens)]] = 1.0
        return {"logits": logits, **self._write(feeds)}

    def rpn(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        cache = feeds["score_key_cache"]
        scores = np.zeros((1, 2, cache.shape[2]), np.float32)
        span = slice(self.first_image_row, self.first_image_row + SPEC.vision.image_tokens)
        scores[0, :, span] = self.scores
        start, rows = int(feeds["write_index"][0]), feeds["tap"].shape[1]
        written = self._write(feeds)
        if self._in_place:
            return {"scores": scores, **written}
        return {"scores": scores, "new_scores": scores[:, :, start : start + rows], **written}

    def _write(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every new row of every cache holds its number plus one."""
        index = feeds["row_index"]
        rows = np.broadcast_to((index + 1.0)[:, None, :, None], (len(index), 2, index.shape[1], HEAD_DIM))
        caches = [name for name in feeds if "cache" in name]
        if not self._in_place:
            return {f"{name}_rows": rows for name in caches}
        for name in caches:
            for entry, start in enumerate(feeds["write_index"]):
                feeds[name][entry, :, start : start + index.shape[1]] = rows[entry]
        return {}


def fake_decoder(script: Script, in_place: bool = True) -> tuple[Decoder, FakeBackend]:
    """A decoder over a fake backend."""
    backend = FakeBackend(script.graphs())
    infos = graph_infos(in_place)
    runners = {name: backend.load(infos[name], Path(name)) for name in ("trunk", "rpn", "tail")}
    return Decoder(backend, runners, WIDTH, VOCABULARY, ROTARY), backend


def fake_bundle(folder: Path, in_place: bool = True, tokenizer: str | None = None) -> Bundle:
    """A bundle whose graphs are never read; only the embedding table is real: row i holds i."""
    table = np.repeat(np.arange(VOCABULARY, dtype=np.float32)[:, None], WIDTH, axis=1)
    (folder / "embed.bin").write_bytes(table.tobytes())
    infos = graph_infos(in_place)
    names = ["embed.bin", *(info.file for info in infos.values())]
    for name in names[1:]:
        (folder / name).touch()
    if tokenizer is not None:
        names.append(tokenizer)
    variant = Variant("fused-fp32", "fused", "fp32", 24, infos, "embed.bin", "float32")
    files = {name: FileInfo((folder / name).stat().st_size, "0" * 64) for name in names}
    manifest = Manifest(SPEC, SPEC.llm.max_context, {variant.name: variant}, files, tokenizer, {}, {}, ROTARY)
    return Bundle(folder, manifest)
