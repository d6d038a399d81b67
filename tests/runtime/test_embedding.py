"""Rows of the embedding table, and files that are not what they are said to be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.manifest import EMBEDDING_DTYPES
from sdrpn.errors import BadBundle, BadInput
from sdrpn.runtime.embedding import TokenEmbedding

VOCABULARY, WIDTH = 7, 6


def written(folder: Path, dtype: str = "float32") -> tuple[Path, np.ndarray]:
    table = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(dtype)
    path = folder / "embed.bin"
    path.write_bytes(table.tobytes())
    return path, table


@pytest.mark.parametrize("dtype", EMBEDDING_DTYPES)
@pytest.mark.parametrize("ids", [[], [0], [6, 0, 0, 3]])
def test_rows_are_those_of_the_table(tmp_path: Path, dtype: str, ids: list[int]) -> None:
    path, table = written(tmp_path, dtype)
    with TokenEmbedding(path, VOCABULARY, WIDTH, dtype) as embedding:
        rows = embedding.rows(ids)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, table[ids].astype(np.float32))


@pytest.mark.parametrize("token_id", [-1, VOCABULARY, 2**40])
def test_an_id_outside_the_vocabulary(tmp_path: Path, token_id: int) -> None:
    path, _ = written(tmp_path)
    with (
        TokenEmbedding(path, VOCABULARY, WIDTH, "float32") as embedding,
        pytest.raises(BadInput, match=f"token id {token_id} is outside the vocabulary; expected 0 to 6"),
    ):
        embedding.rows([0, token_id])


@pytest.mark.parametrize("size_bytes", [0, 8, VOCABULARY * WIDTH * 4 - 1, VOCABULARY * WIDTH * 4 + 1])
def test_a_file_of_another_size(tmp_path: Path, size_bytes: int) -> None:
    path, _ = written(tmp_path)
    os.truncate(path, size_bytes)
    with pytest.raises(BadBundle, match=rf"embed.bin has {size_bytes} bytes; 7 rows of 6 float32 have 168; export"):
        TokenEmbedding(path, VOCABULARY, WIDTH, "float32")


@pytest.mark.parametrize("dtype", ["nonsense", "int8", "object", ""])
def test_another_type(tmp_path: Path, dtype: str) -> None:
    path, _ = written(tmp_path)
    with pytest.raises(BadBundle, match=f"has the type '{dtype}' in the manifest; expected float32 or float16; export"):
        TokenEmbedding(path, VOCABULARY, WIDTH, dtype)


def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with TokenEmbedding(path, VOCABULARY, WIDTH, "float32") as embedding:
        os.truncate(path, WIDTH * 4)
        assert embedding.rows([0]).shape == (1, WIDTH)
        with pytest.raises(BadBundle, match=r"embed\.bin was truncated while it was open; export the bundle again"):
            embedding.rows([0, 3])
