"""Random checkpoints: repeatable, alike in every layout, and readable by other tools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.errors import BadInput
from sdrpn.method.spec import RpnSpec
from tests.tiny_models import tiny_spec


def test_the_weights_depend_on_name_and_seed_alone(tmp_path: Path) -> None:
    name = "llm.layers.1.attention.q.weight"
    write_random_checkpoint(tmp_path / "a", tiny_spec(), seed=1)
    write_random_checkpoint(tmp_path / "b", tiny_spec(rpn=None), seed=1, layout="hf")
    write_random_checkpoint(tmp_path / "c", tiny_spec(), seed=2)
    first, same, other = (open_checkpoint(tmp_path / folder).read(name) for folder in "abc")
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_roi_gain_scales_the_last_query(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "a", tiny_spec())
    write_random_checkpoint(tmp_path / "b", tiny_spec(), roi_gain=4.0)
    names = [f"rpn.layers.{index}.attention.q.weight" for index in (0, 1)]
    with open_checkpoint(tmp_path / "a") as one, open_checkpoint(tmp_path / "b") as four:
        for name, gain in zip(names, (1, 4), strict=True):
            np.testing.assert_array_equal(one.read(name) * np.float32(gain), four.read(name))


def test_the_tokenizer_covers_every_byte(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", tiny_spec(rpn=None, image_token_id=299), layout="hf", with_tokenizer=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "c" / "tokenizer.json"))
    text = "Was steht auf dem Schild? 看 \x00"
    ids = tokenizer.encode(f"<image>{text}").ids
    assert ids[:2] == [1, 299]
    assert max(ids) < 300
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("</s>") == 2


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the layout hf has no place for an RPN"):
        write_random_checkpoint(tmp_path / "c", tiny_spec(rpn=RpnSpec(1)), layout="hf")
    with pytest.raises(BadInput, match="a vocabulary of 200 has no room"):
        write_random_checkpoint(tmp_path / "c", tiny_spec(vocabulary=200), with_tokenizer=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="not empty"):
        write_random_checkpoint(tmp_path, tiny_spec())


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", tiny_spec(), dtype="bfloat16")
    program = (
        "import sys; from sdrpn.checkpoint import open_checkpoint\n"
        f"with open_checkpoint({str(tmp_path / 'c')!r}) as c: [c.read(name) for name in c.names]\n"
        "print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
