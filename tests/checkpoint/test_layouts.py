"""The same model in every layout and in every kind of file reads back as the same tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sdrpn.checkpoint import Checkpoint, open_checkpoint, tensor_shapes, write_random_checkpoint, write_rpn
from sdrpn.checkpoint.random import random_tensor
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.llava.names import HF_CURRENT, HF_OLD, LLAVA, SDRPN, Layout, clip_name
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec, RopeScaling, RpnSpec
from tests.damage import edit_json
from tests.tiny_models import tiny_spec

SEED = 3
LAYOUT_PREFIXES = [(layout, prefix) for layout in (HF_OLD, HF_CURRENT, LLAVA, SDRPN) for prefix in layout.vision]


def named_spec(**changes: Any) -> ModelSpec:
    """A small spec with its prompt by name: a checkpoint that names none is opened with that of its family."""
    spec = tiny_spec(**changes)
    return dataclasses.replace(spec, prompt=dataclasses.replace(spec.prompt, template="vicuna_v1"))


def spec_for(layout: Layout) -> ModelSpec:
    is_hf = layout in (HF_OLD, HF_CURRENT)
    return named_spec(rpn=RpnSpec(2) if layout is SDRPN else None, image_token_id=299 if is_hf else None)


def tensors_of(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    return {name: random_tensor(name, shape, SEED) for name, shape in tensor_shapes(spec).items()}


def write_config(folder: Path, layout: Layout, spec: ModelSpec) -> None:
    """The configs (and the vision tower) of a random checkpoint, without its weights."""
    name: Any = {HF_OLD: "hf", HF_CURRENT: "hf", LLAVA: "llava", SDRPN: "sdrpn"}[layout]
    write_random_checkpoint(folder, spec, layout=name, seed=SEED)
    (folder / "model.safetensors").unlink()


def check_equal(checkpoint: Checkpoint, expected: Mapping[str, NDArray[Any]]) -> None:
    assert checkpoint.names == expected.keys()
    for name, array in expected.items():
        assert checkpoint.shape(name) == array.shape
        found = checkpoint.read(name)
        assert found.dtype == array.dtype, name
        np.testing.assert_array_equal(found, array, err_msg=name)


@pytest.mark.parametrize(("layout", "prefix"), LAYOUT_PREFIXES, ids=lambda part: getattr(part, "name", part))
def test_every_layout_and_prefix(tmp_path: Path, layout: Layout, prefix: str) -> None:
    spec = spec_for(layout)
    write_config(tmp_path / "c", layout, spec)
    tensors = tensors_of(spec)
    stored: dict[str, NDArray[Any]] = {layout.file_name(name, prefix): array for name, array in tensors.items()}
    stored["twig_head.weight"] = np.zeros(3, np.float32)  # whatever else is there is left alone
    save_file(stored, tmp_path / "c" / "model.safetensors")
    with open_checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.spec == spec
        assert checkpoint.layout == layout.name
        check_equal(checkpoint, tensors)


def test_the_vision_tower_in_its_own_folder(tmp_path: Path) -> None:
    spec = spec_for(LLAVA)
    write_random_checkpoint(tmp_path / "c", spec, layout="llava", seed=SEED)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        check_equal(checkpoint, tensors_of(spec))


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_a_vision_tower_that_is_named(tmp_path: Path, prefix: str) -> None:
    """An explicit tower replaces the one that the config means."""
    spec = spec_for(LLAVA)
    write_random_checkpoint(tmp_path / "c", spec, layout="llava", seed=SEED)
    (tmp_path / "c" / "clip").rename(tmp_path / "tower")
    with pytest.raises(BadCheckpoint, match=r"vision tower \./clip of .* is not on this machine.*name its folder"):
        open_checkpoint(tmp_path / "c")
    vision = {name: array for name, array in tensors_of(spec).items() if name.startswith("vision.")}
    stored = {prefix + clip_name(name.removeprefix("vision.")): array for name, array in vision.items()}
    save_file(stored, tmp_path / "tower" / "model.safetensors")
    with open_checkpoint(tmp_path / "c", vision_tower=tmp_path / "tower") as checkpoint:
        check_equal(checkpoint, tensors_of(spec))
    with pytest.raises(BadCheckpoint, match=r"vision tower .* has no config\.json"):
        open_checkpoint(tmp_path / "c", vision_tower=tmp_path)


def test_a_vision_tower_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_for(LLAVA)
    folder = tmp_path / "c"
    write_random_checkpoint(folder, spec, layout="llava", seed=SEED)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "owner/clip"}))
    repository = tmp_path / "hub" / "models--owner--clip"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BadCheckpoint, match=r"owner/clip of .* is not on this machine"):
        open_checkpoint(folder)
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    (folder / "clip").rename(repository / "snapshots" / "abc")
    with open_checkpoint(folder) as checkpoint:
        check_equal(checkpoint, tensors_of(spec))


def split(stored: dict[str, NDArray[Any]], pattern: str) -> tuple[dict[str, str], dict[str, dict[str, NDArray[Any]]]]:
    """Every third tensor into the same shard."""
    files = {name: pattern.format(index % 3 + 1) for index, name in enumerate(stored)}
    shards = {file: {n: stored[n] for n in stored if files[n] == file} for file in files.values()}
    return files, shards


def write_bin(path: Path, stored: dict[str, NDArray[Any]], **options: Any) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in stored.items()}, path, **options)


def test_sharded_safetensors(tmp_path: Path) -> None:
    spec = spec_for(SDRPN)
    write_config(tmp_path / "c", SDRPN, spec)
    stored = {SDRPN.file_name(name): array for name, array in tensors_of(spec).items()}
    files, shards = split(stored, "model-{:05}-of-00003.safetensors")
    for file, shard in shards.items():
        save_file(shard, tmp_path / "c" / file)
    index = tmp_path / "c" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    save_file({"unrelated": np.zeros(2)}, tmp_path / "c" / "other.safetensors")  # not in the index
    with open_checkpoint(tmp_path / "c") as checkpoint:
        check_equal(checkpoint, tensors_of(spec))


@pytest.mark.parametrize("zipped", [True, False])
def test_one_torch_file(tmp_path: Path, zipped: bool) -> None:
    spec = spec_for(LLAVA)
    write_config(tmp_path / "c", LLAVA, spec)
    stored = {LLAVA.file_name(name): array for name, array in tensors_of(spec).items()}
    write_bin(tmp_path / "c" / "pytorch_model.bin", stored, _use_new_zipfile_serialization=zipped)
    torch.save({"lr": 1}, tmp_path / "c" / "training_args.bin")
    with open_checkpoint(tmp_path / "c") as checkpoint:
        check_equal(checkpoint, tensors_of(spec))


def test_sharded_torch_files_and_bfloat16(tmp_path: Path) -> None:
    spec = spec_for(SDRPN)
    write_config(tmp_path / "c", SDRPN, spec)
    stored: dict[str, NDArray[Any]] = {SDRPN.file_name(name): array for name, array in tensors_of(spec).items()}
    files, shards = split(stored, "pytorch_model-{:05}-of-00003.bin")
    for file, shard in shards.items():
        state = {name: torch.from_numpy(array).to(torch.bfloat16) for name, array in shard.items()}
        torch.save(state, tmp_path / "c" / file)
    (tmp_path / "c" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    with open_checkpoint(tmp_path / "c") as checkpoint:
        check_equal(checkpoint, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors_of(spec).items()})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept(tmp_path: Path, dtype: str) -> None:
    write_random_checkpoint(tmp_path / "c", named_spec(), dtype=dtype, seed=SEED)
    stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with open_checkpoint(tmp_path / "c") as checkpoint:
        check_equal(checkpoint, {name: array.astype(stored) for name, array in tensors_of(named_spec()).items()})


def test_tied_embeddings(tmp_path: Path) -> None:
    spec = named_spec(tied_embeddings=True)
    write_random_checkpoint(tmp_path / "c", spec)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.spec == spec
        np.testing.assert_array_equal(checkpoint.read("llm.head.weight"), checkpoint.read("llm.embed.weight"))


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 2.0),
        RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
        RopeScaling("dynamic", 2.0, original_context=256),
        RopeScaling("yarn", 4.0, original_context=64, beta_fast=16.0, beta_slow=2.0, amplitude=1.2, truncate=False),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_rope_scaling_survives(tmp_path: Path, scaling: RopeScaling) -> None:
    spec = named_spec(rope_scaling=scaling, rope_theta=5e5)
    write_random_checkpoint(tmp_path / "c", spec)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.spec == spec


@pytest.mark.parametrize("layers", [1, 3])
def test_projectors_of_other_lengths_survive(tmp_path: Path, layers: int) -> None:
    spec = named_spec(rpn=None)
    spec = dataclasses.replace(spec, vision=dataclasses.replace(clip_of(spec), projector_layers=layers))
    write_random_checkpoint(tmp_path / "c", spec, layout="llava", seed=SEED)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        check_equal(checkpoint, tensors_of(spec))
    with pytest.raises(BadInput, match=r"the layout hf has projectors of 2 layers"):
        write_random_checkpoint(tmp_path / "hf", spec, layout="hf")


@pytest.mark.parametrize("layout", ["llava", "hf"])
def test_a_sliding_window_survives(tmp_path: Path, layout: Any) -> None:
    spec = named_spec(rpn=None, sliding_window=12, image_token_id=299 if layout == "hf" else None)
    write_random_checkpoint(tmp_path / "c", spec, layout=layout)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.spec == spec


# RPN of ours, and a base ---------------------------------------------------------------------------------------------


def test_an_rpn_file_on_a_plain_checkpoint(tmp_path: Path) -> None:
    plain, full = spec_for(HF_OLD), dataclasses.replace(spec_for(HF_OLD), tap_layer=1, rpn=RpnSpec(3, loss="mse"))
    write_random_checkpoint(tmp_path / "base", plain, layout="hf", seed=SEED)
    expected = tensors_of(full)
    written = write_rpn(tmp_path / "rpn", full, expected.__getitem__, note="trained on nothing")
    assert written.note == "trained on nothing"
    with open_checkpoint(tmp_path / "base") as checkpoint:
        assert checkpoint.spec.rpn is None
        plain_digest = checkpoint.digest()
    for rpn in (tmp_path / "rpn", tmp_path / "rpn" / "rpn.safetensors"):
        with open_checkpoint(tmp_path / "base", rpn=rpn) as checkpoint:
            assert checkpoint.spec == full
            check_equal(checkpoint, expected)
            assert checkpoint.digest() != plain_digest
    with pytest.raises(BadCheckpoint, match=r"holds only an RPN; open its base checkpoint"):
        open_checkpoint(tmp_path / "rpn")


def test_an_rpn_file_says_by_what_to_look(tmp_path: Path) -> None:
    own = named_spec()
    write_random_checkpoint(tmp_path / "c", own, seed=SEED)
    with open_checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.policy == ModelPolicy(RoiPolicy(), "official")
    chosen = ModelPolicy(RoiPolicy(0.35), "labels")
    written = write_rpn(tmp_path / "rpn", own, tensors_of(own).__getitem__, policy=chosen)
    with open_checkpoint(tmp_path / "c", rpn=tmp_path / "rpn") as checkpoint:
        assert checkpoint.policy == chosen
    edit_json(written.config, lambda value: value["policy"].update(threshold=2))
    with pytest.raises(BadCheckpoint, match=r"rpn\.json: policy: threshold is 2\.0; expected a number between 0 and 1"):
        open_checkpoint(tmp_path / "c", rpn=tmp_path / "rpn")


def test_an_rpn_file_beside_the_weights_replaces_the_own_one(tmp_path: Path) -> None:
    own, other = named_spec(), dataclasses.replace(named_spec(), tap_layer=1, rpn=RpnSpec(1, multi_head=True))
    write_random_checkpoint(tmp_path / "c", own, seed=SEED)
    write_rpn(tmp_path / "c", other, tensors_of(other).__getitem__, dtype="float16")
    with open_checkpoint(tmp_path / "c") as checkpoint:
        assert checkpoint.spec == other
        assert checkpoint.read("rpn.norm.weight").dtype == np.float16


def test_an_rpn_that_does_not_fit(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", spec_for(LLAVA), layout="llava")
    wider = named_spec(width=64)
    write_rpn(tmp_path / "rpn", wider, tensors_of(wider).__getitem__)
    with pytest.raises(BadCheckpoint, match=r"layers\.0\.input_norm\.weight .* has the shape \[64\]; expected \[48\]"):
        open_checkpoint(tmp_path / "c", rpn=tmp_path / "rpn")
    (tmp_path / "rpn" / "rpn.json").write_text('{"format_version": 2}')
    with pytest.raises(BadCheckpoint, match="format version 2; expected 1"):
        open_checkpoint(tmp_path / "c", rpn=tmp_path / "rpn")
    with pytest.raises(BadCheckpoint, match=r"rpn\.safetensors does not exist"):
        open_checkpoint(tmp_path / "c", rpn=tmp_path)
    with pytest.raises(ValueError, match="no RPN"):
        write_rpn(tmp_path / "rpn", spec_for(LLAVA), tensors_of(wider).__getitem__)


@pytest.mark.parametrize("config_layers", [3, 4])
def test_a_cut_checkpoint_takes_the_rest_from_its_base(tmp_path: Path, config_layers: int) -> None:
    """The published 13B checkpoint ends after the layers that the RPN started from; its config may say so or not."""
    spec = named_spec(tap_layer=1)
    write_random_checkpoint(tmp_path / "cut", spec, seed=SEED)
    write_random_checkpoint(tmp_path / "base", dataclasses.replace(spec, rpn=None), layout="llava", seed=SEED)
    (tmp_path / "base" / "tokenizer.model").touch()
    kept = {
        SDRPN.file_name(name): array
        for name, array in tensors_of(spec).items()
        if name.split(".")[0] in ("rpn", "projector")
        or name.startswith(("llm.embed", *(f"llm.layers.{i}" for i in "012")))
    }
    save_file(kept, tmp_path / "cut" / "model.safetensors")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config_layers}))
    with pytest.raises(BadCheckpoint, match=r"model\..* is missing from .* name the full one as its base"):
        open_checkpoint(tmp_path / "cut")
    with open_checkpoint(tmp_path / "cut", base=tmp_path / "base") as checkpoint:
        assert checkpoint.spec == spec
        assert checkpoint.tokenizer_dir == tmp_path / "base"
        check_equal(checkpoint, tensors_of(spec))


# What a checkpoint says about itself ---------------------------------------------------------------------------------


def test_the_digest_covers_configs_and_weights(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_random_checkpoint(folder, named_spec(), with_tokenizer=True)
    read_bytes: list[int] = []
    with open_checkpoint(folder) as checkpoint:
        first = checkpoint.digest(read_bytes.append)
        assert checkpoint.digest(read_bytes.append) == first
        assert checkpoint.tokenizer_dir == folder
    names = ("config.json", "clip/config.json", "clip/preprocessor_config.json")
    files = [folder / name for name in (*names, "model.safetensors", "clip/model.safetensors")]
    assert sum(read_bytes) == sum(file.stat().st_size for file in files)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b" " if file.suffix == ".json" else content[:-1] + b"\x01")
        with open_checkpoint(folder) as checkpoint:
            assert checkpoint.digest() != first, file
        file.write_bytes(content)


def test_the_golden_checkpoint_opens(golden: Path) -> None:
    with open_checkpoint(golden / "tiny_K3T3") as checkpoint:
        assert (checkpoint.layout, checkpoint.spec.tap_layer, checkpoint.spec.rpn) == ("sdrpn", 3, RpnSpec(3))
        assert checkpoint.tokenizer_dir is None
        for name in checkpoint.names:
            assert np.isfinite(checkpoint.read(name)).all()
