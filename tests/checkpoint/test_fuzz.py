"""Headers, indexes, pickles and configs with anything changed: read, or refused in one line; never anything else."""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput

MOST_CPU_S, MOST_BYTES = 2.0, 1 << 30  # of one case: only looked at where all are run, because machines differ
# What a value may become.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf"), "",
    "x", "x" * 5000, "\0", "../../x", "/etc/passwd", "\ud800", "F32", "BF16", "F4", [], [[]], [1], [-1], [0, 4],
    [2**40], {}, {"a": 1}, [None], [[[[[[1]]]]]], ["x"] * 100, {"type": "linear", "factor": 0}, {"rope_type": "yarn"},
)  # fmt: skip


def places_of(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """(container, key) of every entry, at any depth."""
    found = [] if found is None else found
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            places_of(value[key], found)
    return found


def changed_json(text: bytes, rng: random.Random) -> bytes:
    """One to three entries become something else, go, come again, or swap; or the text itself is damaged."""
    if rng.random() < 0.15:
        return changed_bytes(text, rng)
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        places = places_of(value)
        if not places:
            break
        container, key = rng.choice(places)
        action = rng.randrange(4)
        if action == 0:
            container[key] = rng.choice(ODD_VALUES)
        elif action == 1:
            del container[key]
        elif action == 2 and isinstance(container, dict):
            container[rng.choice(("x", "", "__metadata__", "a" * 3000, "\n"))] = container[key]
        else:
            other, place = rng.choice(places)
            container[key] = json.loads(json.dumps(other[place])) if place in other or isinstance(other, list) else None
    return json.dumps(value).encode("utf-8", "surrogatepass")


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, a piece cut out, doubled, or the end cut off."""
    data = bytearray(content)
    action, at = rng.randrange(4), rng.randrange(len(content) + 1)
    size = rng.randint(1, 64)
    if action == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif action == 1:
        del data[at : at + size]
    elif action == 2:
        data[at:at] = data[at : at + size]
    else:
        del data[at:]
    return bytes(data)


def change_header(folder: Path, rng: random.Random) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = changed_json(content[8 : 8 + size], rng)
    claimed = len(header) if rng.random() < 0.9 else rng.choice((0, 1, size * 3, 2**40, 2**63 - 1, 2**64 - 1))
    path.write_bytes(struct.pack("<Q", claimed) + header + content[8 + size :])


def change_index(folder: Path, rng: random.Random) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(list(names)[:20], "model.safetensors")}
    (folder / "model.safetensors.index.json").write_bytes(changed_json(json.dumps(index).encode(), rng))


def change_config(folder: Path, rng: random.Random) -> None:
    places = [*folder.glob("*.json"), *(folder / "clip").glob("*.json")]
    path = rng.choice(sorted(places))
    path.write_bytes(changed_json(path.read_bytes(), rng))


def change_torch_file(folder: Path, rng: random.Random) -> None:
    legacy = rng.random() < 0.4
    state = {name: torch.from_numpy(array) for name, array in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    if legacy or rng.random() < 0.4:
        content = path.read_bytes()
        at = rng.choice((0, max(0, len(content) - 20_000)))  # what describes the numbers, not the numbers
        path.write_bytes(content[:at] + changed_bytes(content[at : at + 20_000], rng) + content[at + 20_000 :])
        return
    changed = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(changed, "w") as after:
        for record in before.infolist():
            content = before.read(record.filename)
            after.writestr(record, changed_bytes(content, rng) if record.filename.endswith(".pkl") else content)
    changed.rename(path)


CHANGES: tuple[Callable[[Path, random.Random], None], ...] = (
    change_header,
    change_index,
    change_config,
    change_torch_file,
)


def outcome(folder: Path) -> str:
    """What a user sees. Raises any error that is not one of the package's own."""
    try:
        with open_checkpoint(folder) as checkpoint:
            for name in checkpoint.names:
                checkpoint.read(name)
    except BadInput as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 2000, text[:3000]
        return "refused"
    return "read"


def run_case(checkpoint: Path, place: Path, number: int) -> str:
    rng = random.Random(number)
    folder = Path(shutil.copytree(checkpoint, place / "fuzzed"))
    try:
        change = CHANGES[number % len(CHANGES)]
        change(folder, rng)
        return outcome(folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("part", range(4))
def test_a_sample(tiny_checkpoint: Path, tmp_path: Path, part: int) -> None:
    found = {run_case(tiny_checkpoint, tmp_path, number) for number in range(part, 60, 4)}
    assert "refused" in found


@pytest.mark.slow
def test_two_thousand(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = {"read": 0, "refused": 0}
    for number in range(2000):
        start = time.process_time()
        found[run_case(tiny_checkpoint, tmp_path, number)] += 1
        assert time.process_time() - start < MOST_CPU_S, number
    assert min(found.values()) > 100, found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST_BYTES


def test_changes_change_something() -> None:
    text = json.dumps({"a": {"b": [1, 2, {"c": "d"}]}, "e": 1.5}).encode()
    seen = {changed_json(text, random.Random(number)) for number in range(200)}
    assert len(seen) > 150
    assert np.mean([changed_bytes(text, random.Random(number)) != text for number in range(200)]) > 0.9
