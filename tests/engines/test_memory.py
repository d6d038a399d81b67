"""Estimates of memory, and the refusals that name what is missing."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from sdrpn.engines.memory import Estimate, device_shortage, estimate, host_shortage
from sdrpn.engines.options import least_context
from tests.engines.recipes import target
from tests.engines.test_profiles import LLAVA_7B, PLAIN_7B

WEIGHTS = {"vision": 600_000_000, "trunk": 6_000_000_000, "rpn": 900_000_000, "tail": 7_000_000_000}


def needed(jobs: int = 1, max_context: int = 2048, max_batch: int = 1, *, weight_streaming: bool = False) -> Estimate:
    return estimate(
        LLAVA_7B,
        WEIGHTS,
        built=("vision", "trunk"),
        jobs=jobs,
        max_context=max_context,
        max_batch=max_batch,
        weight_streaming=weight_streaming,
    )


def test_the_host_holds_the_builds_that_run_at_once() -> None:
    trunk, vision = 400_000_000 + 3.3 * 6e9, 400_000_000 + 3.3 * 6e8
    assert needed(jobs=1).host_bytes == pytest.approx(trunk)
    assert needed(jobs=2).host_bytes == needed(jobs=8).host_bytes == pytest.approx(trunk + vision)


def test_the_device_holds_all_graphs_whichever_are_built() -> None:
    assert needed().device.weights_bytes == 14_500_000_000
    assert needed(weight_streaming=True).device.weights_bytes == 0


def test_caches() -> None:
    """32 layers and two of the RPN, keys and values, and one key cache: 69 of 4096 halves; 4096 floats of tap."""
    assert needed().device.caches_bytes == 2048 * (69 * 4096 * 2 + 4096 * 4)
    assert needed(max_batch=3).device.caches_bytes == 3 * needed().device.caches_bytes
    plain = estimate(PLAIN_7B, WEIGHTS, built=("trunk",), jobs=1, max_context=2048, max_batch=1)
    assert plain.device.caches_bytes == 2048 * (64 * 4096 * 2 + 4096 * 4)


def test_streamed_weights_lie_in_the_same_memory_where_there_is_one() -> None:
    found = estimate(
        LLAVA_7B, WEIGHTS, built=("trunk",), jobs=1, max_context=2048, max_batch=1, weight_streaming=True,
        unified_memory=True,
    )  # fmt: skip
    assert found.device.weights_bytes == 14_500_000_000


def test_what_fits_is_not_refused() -> None:
    assert device_shortage(needed(), target(memory_gb=24), LEAST) is None
    assert host_shortage(needed(), 64_000_000_000) is None
    assert host_shortage(needed(), None) is None  # not known
    assert host_shortage(dataclasses.replace(needed(), built=()), 1) is None  # all is there


LEAST = least_context(LLAVA_7B)  # 1153
SKIP = "or skip this check"


@pytest.mark.parametrize(
    ("planned", "memory_gb", "advice"),
    [
        # Weights 14.5 GB; a row of context takes 0.58 MB of caches and about 0.2 MB of activations.
        ({"max_context": 4096}, 16.2, r"a context of \d+ fits, or weight streaming fits"),
        ({"max_batch": 8}, 16.5, "a batch of 1 fits, or weight streaming fits"),
        ({"max_batch": 9, "max_context": 4096}, 16.2, r"a batch of 1 with a context of \d+ fits, or skip"),
        ({}, 15, r"weight streaming fits, or no context fits beside these weights: use a lower precision \(see"),
        ({"weight_streaming": True}, 1, r"a context of \d+ fits, or skip"),
        ({"weight_streaming": True}, 0.5, "skip this check"),
    ],
)
def test_a_device_that_is_too_small(planned: dict[str, Any], memory_gb: float, advice: str) -> None:
    """What is named is enough: it was added up."""
    found = device_shortage(needed(**planned), target(memory_gb=memory_gb), LEAST)
    assert found is not None
    assert re.search(
        rf"the engines need about \d.* GB \(weights .*\) and My GPU has .* are missing; {advice}", found
    ), found
    assert found.endswith(SKIP.removeprefix("or "))
    if context := re.search(r"a context of (\d+)", found):
        smaller = {
            **planned,
            "max_context": int(context.group(1)),
            **({"max_batch": 1} if "a batch of 1" in found else {}),
        }
        assert device_shortage(needed(**smaller), target(memory_gb=memory_gb), LEAST) is None
        larger = {**smaller, "max_context": smaller["max_context"] + 1}
        assert device_shortage(needed(**larger), target(memory_gb=memory_gb), LEAST) is not None


def test_what_is_missing_is_told_in_parts() -> None:
    found = device_shortage(needed(), target(), LEAST)
    assert found is not None
    assert re.match(
        r"the engines need about 16\.\d GB \(weights 14\.5 GB, caches 1\.2 GB, activations \d+\.\d MB,", found
    )
    assert re.search(r"and My GPU has 8\.0 GB: 8\.\d GB are missing; ", found)


def test_weights_are_not_streamed_to_a_gpu_that_works_in_the_same_memory() -> None:
    found = device_shortage(needed(max_context=4096), target(memory_gb=16.2, unified_memory=True), LEAST)
    assert found is not None
    assert "weight streaming" not in found


@pytest.mark.parametrize(
    ("jobs", "available_gb", "message"),
    [
        (
            1,
            16,
            r"has 16\.0 GB available: 4\.2 GB are missing; the graphs vision alone fit, or use a lower precision \(see",
        ),
        (2, 21, r"has 21\.0 GB available: 1\.6 GB are missing; with one job it is 20\.2 GB, or skip this check"),
        (
            1,
            1,
            r"has 1\.0 GB available: 19\.2 GB are missing; use a lower precision \(see sdrpn export\), or build on",
        ),
    ],
)
def test_a_host_that_is_too_small(jobs: int, available_gb: float, message: str) -> None:
    found = host_shortage(needed(jobs=jobs), int(available_gb * 1e9))
    assert found is not None
    assert re.search(message, found), found
    assert found.endswith(SKIP)
