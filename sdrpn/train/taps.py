"""Taps of labelled prompts: computed once and stored in memory-mapped files, or computed on demand.

A file has the taps of a few hundred prompts, one row per token. Rows of a prefix shared by several questions are stored
once. Files are written atomically and named after their content, so an interrupted run continues with the first
missing file, and trainings on the same prompts share them. P, Q, D as in `base.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdrpn.bundle.number_types import numpy_type
from sdrpn.bundle.numerics import NUMBER_TYPES, NumberType, precision_named
from sdrpn.errors import RunFailed
from sdrpn.host.atomic import replacing_file, require_free_space
from sdrpn.host.progress import Advance, Grown, unseen
from sdrpn.train.base import FrozenBase
from sdrpn.train.label_set import LabelledPrompt
from sdrpn.train.options import TapStore

__all__ = ["FILE_PROMPTS", "ComputedTaps", "StoredTaps", "TapSource", "store_taps"]

FILE_PROMPTS = 256
FORMAT_VERSION = 1

Rows = tuple[slice, slice]  # the rows of a prompt's prefix and question in its file


class TapSource(Protocol):
    """The source of a training's taps."""

    def tap(self, place: int) -> Tensor:
        """The tap (S,D) of a whole prompt, by its index in the label set; any float type and device."""


class ComputedTaps:
    """Runs the trunk for every requested prompt."""

    def __init__(self, base: FrozenBase, prompts: Sequence[LabelledPrompt]) -> None:
        self._base = base
        self._prompts = prompts

    def tap(self, place: int) -> Tensor:
        """See TapSource."""
        prompt = self._prompts[place]
        return torch.cat((self._base.prefix(prompt), self._base.question(prompt)))


class StoredTaps:
    """Reads files written by `store_taps`."""

    def __init__(self, folder: Path, prompts: Sequence[LabelledPrompt], key: str, kind: TapStore) -> None:
        self._files: list[NDArray[Any]] = []
        self._rows: list[Rows] = []
        for chunk in _chunks(prompts):
            path = _path(folder, chunk, key, kind)
            if not path.is_file():
                raise RunFailed(
                    f"{path} is missing; stored taps must lie in a folder that all machines share",
                    options=("taps_dir",),
                )
            rows, _ = _layout(chunk)
            self._files.append(np.load(path, mmap_mode="r"))
            self._rows += rows
        self._bf16 = _type_of(kind).held_as != _type_of(kind).name

    def tap(self, place: int) -> Tensor:
        """See TapSource."""
        file = self._files[place // FILE_PROMPTS]
        rows = np.concatenate([file[part] for part in self._rows[place]])
        if self._bf16:
            return torch.from_numpy(rows).view(torch.bfloat16)
        return torch.from_numpy(rows)


def store_taps(
    folder: Path,
    prompts: Sequence[LabelledPrompt],
    key: str,
    kind: TapStore,
    make_base: Callable[[], FrozenBase],
    *,
    share: tuple[int, int] = (0, 1),
    progress: Advance = unseen,
) -> None:
    """Compute and write missing files.

    Args:
        key: everything besides the prompts that determines their taps
        make_base: called only if a file is missing
        share: (rank, processes): this process writes every `processes`-th file
    Raises RunFailed where a value does not fit `kind`, or the disk is too small.
    """
    chunks = _chunks(prompts)[share[0] :: share[1]]
    todo = [chunk for chunk in chunks if not _path(folder, chunk, key, kind).is_file()]
    if not todo:
        return
    base = make_base()
    rows = sum(_layout(chunk)[1] for chunk in todo)
    advice = "taps computed on demand take none"
    require_free_space(folder, rows * base.width * _type_of(kind).size_bytes, advice=advice)
    done, total = 0, sum(len(chunk) for chunk in todo)

    def advance(_: int) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for chunk in todo:
        _write(_path(folder, chunk, key, kind), chunk, kind, base, advance)


def _chunks(prompts: Sequence[LabelledPrompt]) -> list[Sequence[LabelledPrompt]]:
    return [prompts[start : start + FILE_PROMPTS] for start in range(0, len(prompts), FILE_PROMPTS)]


def _layout(chunk: Sequence[LabelledPrompt]) -> tuple[list[Rows], int]:
    """The rows of each prompt, and the number of rows. A prefix is stored before its first question."""
    prefixes: dict[tuple[str, tuple[int, ...]], slice] = {}
    rows, end = [], 0
    for prompt in chunk:
        key = prompt.image, prompt.ids_before
        if key not in prefixes:
            length = len(prompt.ids_before) + prompt.cells.size
            prefixes[key] = slice(end, end + length)
            end += length
        rows.append((prefixes[key], slice(end, end + len(prompt.ids_after))))
        end += len(prompt.ids_after)
    return rows, end


def _path(folder: Path, chunk: Sequence[LabelledPrompt], key: str, kind: TapStore) -> Path:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {key} {kind}".encode())
    for prompt in chunk:
        digest.update(repr((prompt.image, prompt.ids_before, prompt.ids_after)).encode("utf-8", "surrogatepass"))
    return folder / f"{digest.hexdigest()[:32]}.npy"


def _write(path: Path, chunk: Sequence[LabelledPrompt], kind: TapStore, base: FrozenBase, advance: Grown) -> None:
    dtype, stored = numpy_type(_type_of(kind).name), _type_of(kind).held_as  # NumPy's file format has no bfloat16
    rows, count = _layout(chunk)
    with replacing_file(path) as temporary:
        file = np.lib.format.open_memmap(temporary, "w+", stored, (count, base.width))
        written: set[int] = set()
        for number, (prompt, (prefix, question)) in enumerate(zip(chunk, rows, strict=True)):
            if prefix.start not in written:
                file[prefix] = _stored(base.prefix(prompt), dtype, kind).view(stored)
                written.add(prefix.start)
            file[question] = _stored(base.question(prompt), dtype, kind).view(stored)
            advance(number)
        file.flush()


def _type_of(kind: TapStore) -> NumberType:
    return NUMBER_TYPES[precision_named(kind).computes]


def _stored(tap: Tensor, dtype: np.dtype[Any], kind: TapStore) -> NDArray[Any]:
    exact = tap.cpu().numpy()
    peak = float(np.abs(exact).max(initial=0))
    limit = _type_of(kind).largest or np.inf
    if not peak <= limit:  # also true for NaN
        raise RunFailed(
            f"a tap has the value {peak:.3g}, above the largest {kind}, {limit:.3g}; store taps as bf16",
            options=("taps bf16",),
        )
    return exact.astype(dtype)
