"""What is said about a checkpoint that is damaged, incomplete or of another model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.checkpoint.torch_file import TorchReader
from sdrpn.errors import BadCheckpoint, BadInput
from tests.tiny_models import tiny_spec

Q2 = "model.layers.2.self_attn.q_proj.weight"
Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "c", tiny_spec())
    return tmp_path / "c"


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        open_checkpoint(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop(Q2))
    text = message(folder)
    assert text.startswith(f"{Q2} [64, 48] is missing from {folder}; if upper layers were cut")


def test_a_misnamed_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"model.layers.2.self_attn.q.weight": tensors.pop(Q2)}))
    assert "the closest name in it is model.layers.2.self_attn.q.weight [64, 48]" in message(folder)


def test_several_missing_tensors_of_the_rpn(folder: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("model.twig")]:
            del tensors[name]

    edit(folder, drop)
    text = message(folder)
    assert text.startswith("model.twig_layers.0.input_layernorm.weight [48] is missing from ")
    assert text.endswith("(and 12 more)")


def test_a_wrong_shape(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({Q2: np.zeros((64, 47), np.float32)}))
    expected = f"{Q2} of {folder} has the shape [64, 47]; expected [64, 48]: config.json and the weights are not"
    assert message(folder).startswith(expected)


def test_a_quantised_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({Q2: np.zeros((64, 48), np.uint8)}))
    assert f"{Q2} of {folder} is stored as uint8; expected float32, float16 or bfloat16" in message(folder)


def test_a_truncated_shard(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is truncated: model.twig_norm.weight ends at byte" in message(folder)


def test_a_vision_tower_of_another_size(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "clip" / "config.json").read_text())
    (folder / "clip" / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    assert f"{folder / 'clip'} is the wrong vision tower: its width is 32" in message(folder)
    (folder / "clip" / "config.json").write_text(json.dumps(config | {"image_size": 64}))
    assert "preprocessor_config.json: size is 32; the vision tower sees 64 px" in message(folder)
    (folder / "clip" / "preprocessor_config.json").unlink()
    text = message(folder)
    assert "position_embedding.weight" in text
    assert "has the shape [17, 24]; expected [65, 24]: is this the right vision tower?" in text
    (folder / "clip" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    assert "vision_model.encoder.layers.2.layer_norm1.weight [24] is missing" in message(folder)


def test_a_tower_for_a_checkpoint_that_has_one(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", tiny_spec(rpn=None), layout="hf")
    assert "carries its own vision tower" in message(tmp_path / "c", vision_tower=tmp_path)


def test_folders_that_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert "is not a folder" in message(tmp_path / "nowhere")
    assert "is not a folder" in message(folder / "config.json")
    assert "has no config.json" in message(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}')
    assert "holds only an adapter; name the folder of its base ('lmsys/vicuna-7b-v1.5')" in message(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "has no weights; expected *.safetensors or pytorch_model*.bin" in message(folder)
    (folder / "llava-q4_k.gguf").touch()
    assert "holds llava-q4_k.gguf (weights of llama.cpp, quantised), which is not supported" in message(folder)
    save_file({"transformer.h.0.weight": np.zeros(2)}, folder / "model.safetensors")
    text = message(folder)
    assert "expected tensors named language_model.model.layers.N.*" in text
    assert "such as transformer.h.0.weight" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "index.json is not JSON that can be read"),
        ('{"weight_map": 3}', "is not an index of shards"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "names gone.safetensors, which does not exist"),
        ('{"weight_map": {"a": "../c/model.safetensors"}}', "expected a file of the same folder"),
        ('{"weight_map": {"a": 5}}', "expected a file of the same folder"),
    ],
)
def test_a_bad_index(folder: Path, content: str, expected: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    assert expected in message(folder)


def test_a_tensor_in_two_files(folder: Path) -> None:
    save_file({Q2: np.zeros((64, 48), np.float32)}, folder / "extra.safetensors")
    assert f"{Q2} is in both extra.safetensors and model.safetensors" in message(folder)


# PyTorch's files -----------------------------------------------------------------------------------------------------


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"holds Python objects that are not tensors .*, and is not opened"):
        TorchReader(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}])
def test_a_torch_file_that_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(BadCheckpoint, match="is not a dict of tensors"):
        TorchReader(tmp_path / "a.bin")


def test_a_truncated_torch_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.bin")
    whole = (tmp_path / "a.bin").read_bytes()
    for kept in (0, 10, len(whole) // 2):
        (tmp_path / "a.bin").write_bytes(whole[:kept])
        with pytest.raises(BadCheckpoint, match=r"a\.bin") as caught:
            TorchReader(tmp_path / "a.bin")
        assert "\n" not in str(caught.value)


def test_torch_files_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    np.testing.assert_array_equal(TorchReader(tmp_path / "a.bin").read("a"), np.ones(2))
