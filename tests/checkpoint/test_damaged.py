"""Untrusted checkpoints: files of the wrong kind, impossible sizes, links that lead out: one line each."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.finite import count_not_finite
from sdrpn.checkpoint.model_file import read_small_file, require_model_file
from sdrpn.errors import BadCheckpoint

EMBED = "model.embed_tokens.weight"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def read_all(folder: Path, **options: Any) -> None:
    with open_checkpoint(folder, **options) as checkpoint:
        for name in checkpoint.names:
            checkpoint.read(name)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        read_all(folder, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def edit_config(folder: Path, changes: dict[str, Any], name: str = "config.json") -> None:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = dict(load_file(folder / "model.safetensors"))
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


# Kinds of files ------------------------------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have some 100 characters
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": make_socket,
    "a link to a file that does not exist": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "a.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "clip/preprocessor_config.json",
        "clip/model.safetensors",
    ],
)
def test_what_is_no_file(copy: Path, name: str, kind: str) -> None:
    path = copy / name
    if name.startswith("pytorch"):
        (copy / "model.safetensors").unlink()
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    assert f"{name} is {kind}" in refused(copy, allow_links=True)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "a.safetensors.index.json"])
def test_a_text_without_end(copy: Path, name: str) -> None:
    with (copy / name).open("wb") as file:
        file.truncate(10**12)
    assert f"{name} has 1.0 TB; expected" in refused(copy)


def test_a_file_that_may_not_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"a+\.\.\. \(\d+ characters\) cannot be read \(File name too long\)"):
        require_model_file(tmp_path / ("a" * 5000))
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        read_small_file(tmp_path / "a\0b")


# Links ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "clip/model.safetensors", "clip/config.json"])
def test_links_that_leave_the_checkpoint_need_leave(copy: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (copy / name).rename(elsewhere / "f")
    (copy / name).symlink_to(elsewhere / "f")
    assert f"is a link that leaves {(copy / name).parent}" in refused(copy)
    assert refused(copy).endswith(f"allow links to {elsewhere}")
    read_all(copy, allow_links=elsewhere)


def test_a_snapshot_of_a_cache(tiny_checkpoint: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--me--c" / "blobs", tmp_path / "models--me--c" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in tiny_checkpoint.rglob("*") if path.is_file())):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(tiny_checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    read_all(snapshot)


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_that_are_no_numbers_are_counted(value: float, dtype: Any) -> None:
    array = np.linspace(-60_000, 60_000, 3_000_000, dtype=np.float32).astype(dtype).reshape(3000, 1000)
    assert count_not_finite(array) == 0
    array[0, 0] = array[1, 999] = array[2999, 999] = value
    assert count_not_finite(array) == 3
    assert count_not_finite(array.T) == 3
    assert count_not_finite(array[:0]) == 0


def test_weights_that_are_no_numbers(copy: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        tensors[EMBED] = tensors[EMBED].copy()
        tensors[EMBED][3, 5] = np.nan

    edit_weights(copy, damage)
    assert f"{EMBED} of {copy} holds 1 of 6144 numbers that are NaN or infinite" in refused(copy)


def test_numbers_that_nobody_reads_may_be_anything(copy: Path) -> None:
    edit_weights(copy, lambda tensors: tensors.update({"unused": np.full(3, np.nan, np.float32)}))
    read_all(copy)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 10_000_000}, "layers is 10000000; expected 1024 at most"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers is"),
        ({"vocab_size": 2**40}, "vocabulary is 1099511627776; expected 16777216 at most"),
        ({"rope_theta": 0}, "rope_theta is 0.0; expected a number of at least 1e-06"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; expected a finite number"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; expected a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor of the rope scaling linear is 0.0"),
        ({"twig_T": 10_000_000}, "layers is 10000000; expected 1024 at most"),
        ({"hidden_size": [[[[[[48]]]]]]}, "hidden_size is [[[["),
        ({"hidden_size": "x" * 100_000}, "hidden_size is 'xxx"),
        ({"hidden_act": "x" * 100_000}, "hidden_act is"),
        ({"mm_vision_tower": "x" * 100_000}, "the vision tower xxx"),
        ({"mm_vision_tower": "a\0b"}, "the vision tower"),
        ({"mm_vision_tower": ["clip"]}, "mm_vision_tower is ['clip']"),
        ({"model_type": ["llava_llama"]}, "model_type"),
    ],
)
def test_entries_that_no_model_has(copy: Path, changes: dict[str, Any], expected: str) -> None:
    edit_config(copy, changes)
    text = refused(copy)
    assert expected in text
    assert str(copy) in text


@pytest.mark.parametrize(
    "entry",
    [
        {"size": [56, 56]},
        {"size": {"height": [1], "width": {}}},
        {"image_std": [0, 1, 1]},
        {"image_std": [1]},
        {"image_mean": [10**400] * 3},
        {"image_std": [0.2, None, 1]},
    ],
)
def test_a_normalisation_that_divides_by_nothing(copy: Path, entry: dict[str, Any]) -> None:
    edit_config(copy / "clip", entry, "preprocessor_config.json")
    assert next(iter(entry)) in refused(copy)
