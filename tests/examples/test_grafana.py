"""The dashboard of examples/grafana asks for metrics and labels that a server exports, and for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sdrpn.host.power import PowerMeter
from sdrpn.runtime.scheduler import Load
from sdrpn.runtime.server.about import About
from sdrpn.runtime.server.admission import Admission
from sdrpn.runtime.server.metrics import Metrics
from tests.runtime.server.device import StandInSession, device_with_release
from tests.sources import ROOT

BOARD: dict[str, Any] = json.loads((ROOT / "examples" / "grafana" / "fleet.json").read_text())
# Prometheus adds these to what it scrapes.
OF_PROMETHEUS = {"instance", "job"}


class Meter(PowerMeter):
    """A GPU that nothing samples."""

    @property
    def latest(self) -> dict[str, float]:
        return {"watts": 31.5, "device_memory_bytes": 2e9}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every name that a server with a GPU and a release exports, with its labels."""
    bundle = device_with_release(tmp_path_factory.mktemp("device"))
    about = About("signs", lambda: StandInSession(bundle))  # type: ignore[arg-type, return-value]
    metrics = Metrics("signs", lambda: Load(0, 0, 0.0, {}), Admission(1, 1, 1), Meter(), about)
    metrics.refused(429)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        labels = {"stage", "le", "finished_reason", "found", "again", "status", "outcome"}
        found.setdefault(family.name, labels)  # counters and histograms without samples show no labels
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        if family.type in ("counter", "histogram"):
            for suffix in ("_total",) if family.type == "counter" else ("_bucket", "_sum", "_count"):
                found.setdefault(f"{family.name}{suffix}", set()).update({"model_name", *labels})
    return found


def queries() -> Iterator[str]:
    for panel in BOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["query"]["query"] for variable in BOARD["templating"]["list"] if variable["type"] == "query")


def test_every_metric_is_exported(exported: dict[str, set[str]]) -> None:
    asked = {name for query in queries() for name in re.findall(r"\b(?:sdrpn|vllm):\w+", query)}
    assert len(asked) > 15
    assert asked - set(exported) == set()


def test_every_label_is_exported(exported: dict[str, set[str]]) -> None:
    for query in queries():
        for name, inside in re.findall(r"\b((?:sdrpn|vllm):\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r'(\w+)\s*(?:=~|!=|=)\s*"', inside))
            assert labels - exported[name] - OF_PROMETHEUS == set(), query


def test_grouping_labels_are_exported(exported: dict[str, set[str]]) -> None:
    every = set().union(*exported.values()) | OF_PROMETHEUS
    for query in queries():
        for inside in re.findall(r"\bby \(([^)]*)\)", query):
            assert {name.strip() for name in inside.split(",")} <= every


def test_columns_of_tables_are_labels(exported: dict[str, set[str]]) -> None:
    tables = [panel for panel in BOARD["panels"] if panel["type"] == "table"]
    assert len(tables) == 4
    for panel in tables:
        (name,) = re.findall(r"\bsdrpn:\w+", panel["targets"][0]["expr"])
        order = panel["transformations"][-1]["options"]["indexByName"]
        assert set(order) - exported[name] - OF_PROMETHEUS <= {"Value"}, panel["title"]


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & own, panel["title"]
        cells |= own


def test_the_source_of_data_is_chosen_by_a_variable() -> None:
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"]} == {"${datasource}"}
    assert {"datasource", "model", "instance"} == {variable["name"] for variable in BOARD["templating"]["list"]}


def test_the_file_is_where_the_guide_says() -> None:
    assert "examples/grafana/fleet.json" in Path(ROOT / "docs" / "how-to-fleet.md").read_text()
