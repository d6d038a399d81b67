"""Figures that tell a fleet what each server answers with."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from sdrpn.release.store import ReleaseStore
from sdrpn.runtime.server.about import About
from tests.release.small_releases import NOW, small_index
from tests.runtime.server.device import StandInSession, device_with_release


def figures(bundle: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    about = About("signs", lambda: StandInSession(bundle))  # type: ignore[arg-type, return-value]
    return {metric.name: [(sample.labels, sample.value) for sample in metric.samples] for metric in about.collect()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return device_with_release(tmp_path_factory.mktemp("device"))


def test_engine_and_libraries(bundle: Path) -> None:
    found = figures(bundle)
    engine = {"model_name": "signs", "backend": "tensorrt-rtx", "variant": "fused-int4", "target": "l4"}
    assert found["sdrpn:engine_info"] == [(engine, 1)]
    libraries = {labels["library"]: labels["version"] for labels, _ in found["sdrpn:library_info"]}
    assert libraries["numpy"] == version("numpy")
    assert "sdrpn" in libraries


def test_release_and_trial(bundle: Path) -> None:
    found, index = figures(bundle), small_index(version=7, expires="2028-01-01T00:00:00Z")
    ((labels, one),) = found["sdrpn:release_info"]
    assert (labels["release"], labels["version"], labels["name"], one) == (index.id, "7", "signs", 1)
    assert len(labels["signed_by"]) == 12
    assert labels["state"] == "pending"
    assert found["sdrpn:release_version"][0][1] == 7
    assert found["sdrpn:release_expires_timestamp_seconds"][0][1] == 1830297600
    ((labels, _),) = found["sdrpn:last_trial_info"]
    assert (labels["release"], labels["result"], labels["reason"]) == (index.id, "passed", "")
    assert found["sdrpn:last_trial_passed"][0][1] == 1
    assert found["sdrpn:last_trial_timestamp_seconds"][0][1] == NOW.timestamp()
    store = ReleaseStore(bundle.parents[2])
    store.confirm(index.id)
    assert figures(bundle)["sdrpn:release_info"][0][0]["state"] == "current"


def test_a_failed_trial_shows_its_reason(tmp_path: Path) -> None:
    found = figures(device_with_release(tmp_path, "failed: its map has numbers that are not finite"))
    ((labels, _),) = found["sdrpn:last_trial_info"]
    assert (labels["result"], labels["reason"]) == ("failed", "its map has numbers that are not finite")
    assert found["sdrpn:last_trial_passed"][0][1] == 0


def test_a_bundle_that_is_no_release(tmp_path: Path) -> None:
    assert set(figures(tmp_path)) == {"sdrpn:engine_info", "sdrpn:library_info"}


def test_a_damaged_release_takes_no_other_figures_along(tmp_path: Path) -> None:
    bundle = device_with_release(tmp_path)
    index = bundle.parent / "release.json"
    index.chmod(0o644)
    index.write_text("{")
    assert set(figures(bundle)) == {"sdrpn:engine_info", "sdrpn:library_info"}
