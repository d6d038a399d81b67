"""Targets: those that come with the package, and files of users with every mistake."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from sdrpn.engines import read_target, read_targets
from sdrpn.engines.target import release
from sdrpn.errors import BadInput
from tests.engines.recipes import RTX_TARGET, target

FOLDER = Path(__file__).parents[2] / "engines" / "targets"
NAMES = {
    *("jetson-orin-nx-jp62", "jetson-agx-orin-jp62", "jetson-agx-orin-jp72", "jetson-thor", "dgx-spark", "a100"),
    *("a6000", "l4", "rtx-4090", "rtx-5090", "h100", "h200", "b200", "rtx-portable"),
}


def test_the_devices() -> None:
    assert read_targets().keys() == NAMES
    assert read_target("rtx-portable").compute_capabilities == ("SM86", "SM89", "SM120", "SM121")
    assert read_target("jetson-orin-nx-jp62").dialect == "primitive"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_number_has_a_source_above_it(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    numbers = [index for index, line in enumerate(lines) if re.match(r"(compute|tensorrt_|memory|precisions)", line)]
    assert len(numbers) >= 4
    assert all(lines[index - 1].startswith("# ") for index in numbers)
    for index in numbers:
        if re.match(r"(compute|memory)", lines[index]):
            above = itertools.takewhile(lambda line: line.startswith("# "), reversed(lines[:index]))
            assert any("https://" in line for line in above), lines[index]


def test_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "bench-gpu.toml"
    path.write_bytes((FOLDER / f"{RTX_TARGET}.toml").read_bytes())
    assert read_target(str(path)).name == "bench-gpu"


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (FOLDER.parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(example, encoding="utf-8")
    assert read_target(str(path)).compute_capabilities == ("SM86",)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        BadInput,
        match=r"no target 'rtx-9090'; did you mean rtx-5090\?; known targets are a100, .*; or name a \.toml file",
    ):
        read_target("rtx-9090")
    with pytest.raises(BadInput, match="no target"):
        read_target("../targets/a100")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_gb = 24", "", "lacks: memory_gb; a target has device, compute_capabilities"),
        ("memory_gb = 24", "memory_gb = true", "memory_gb is True, expected a number"),
        ("memory_gb = 24", "memory_gb = 0", "memory_gb is 0; expected a number above 0"),
        ("memory_gb = 24", "memory_gb = 24\nspeed = 1", "has unknown entries: speed"),
        ('["SM89"]', '"SM89"', "compute_capabilities is 'SM89', expected a list of text"),
        ('["SM89"]', '["8.9"]', r"compute_capabilities is \('8.9',\); expected a list such as"),
        ('"fused"', '"both"', "dialect is 'both'; expected one of fused, primitive"),
        ('"1.7"', '"new"', "tensorrt_min is 'new'; expected a release"),
        ('"tensorrt-rtx"', '"tensorrt"', "built is 'here'; expected device: TensorRT builds on the GPU itself"),
        ('"fp8"', '"fp7"', "precisions is .*; expected a list of fp16, bf16, int8, fp8, int4, nvfp4"),
        ("= false", '= "no"', "unified_memory is 'no', expected true or false"),
        ("device", "= device", "is not a target file"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (FOLDER / f"{RTX_TARGET}.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        read_target(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute_capabilities": ("SM75",), "precisions": ("int4", "fp16")}, "expected no int4 for SM75: SM80 is the"),
        ({"compute_capabilities": ("SM89", "SM86"), "precisions": ("fp8",)}, "expected no fp8 for SM86: SM89 is the"),
        ({"precisions": ("nvfp4",)}, "expected no nvfp4 for SM86: SM100 is the first"),
        (
            {"flavour": "tensorrt", "built": "device", "tensorrt_min": "10.3"},
            "tensorrt_min is '10.3'; expected 10.15 or later for the dialect fused",
        ),
    ],
)
def test_what_no_device_can_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        target(**changes)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_target(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("version", "changes", "good"),
    [
        ("1.7.1.116", {}, True),
        ("1.6.9", {}, False),
        ("10.3.0", {"tensorrt_min": "10.3", "tensorrt_below": "10.4"}, True),
        ("10.4.0", {"tensorrt_min": "10.3", "tensorrt_below": "10.4"}, False),
        ("10.13.3.9", {"tensorrt_min": "10.16"}, False),
        ("11.4.0.106", {"tensorrt_min": "10.16"}, True),
    ],
)
def test_versions(version: str, changes: dict[str, Any], good: bool) -> None:
    assert target(**changes).accepts(version) is good
    assert release(version) > (1, 6)
