"""`sdrpn targets`: the table and its JSON."""

from __future__ import annotations

from sdrpn.engines import read_targets
from tests.cli.command import Command


def test_the_table(sdrpn: Command) -> None:
    outcome = sdrpn("targets")
    assert (outcome.code, outcome.err) == (0, "")
    head, *lines = outcome.out.splitlines()
    rows = lines[: len(read_targets())]
    assert head.split() == ["target", "device", "capability", "library", "dialect", "precisions", "memory", "built"]
    assert [row.split()[0] for row in rows] == list(read_targets())
    (thor,) = [row for row in rows if row.startswith("jetson-thor")]
    assert "SM110" in thor
    assert "tensorrt >=10.16" in thor
    assert "128 GB shared" in thor
    assert thor.endswith("on the device")
    notes = {name: target.note for name, target in read_targets().items() if target.note}
    assert lines[len(rows) :] == [f"{name}: {note}" for name, note in notes.items()]
    assert "wrong numbers" in notes["jetson-thor"]


def test_json(sdrpn: Command) -> None:
    found = sdrpn("targets", "--json").json()["targets"]
    assert found["jetson-orin-nx-jp62"] == {
        "name": "jetson-orin-nx-jp62",
        "device": "Jetson Orin NX 16GB, JetPack 6.2",
        "compute_capabilities": ["SM87"],
        "flavour": "tensorrt",
        "tensorrt_min": "10.3",
        "tensorrt_below": "10.4",
        "dialect": "primitive",
        "precisions": ["int4", "fp16", "bf16"],
        "memory_gb": 16,
        "unified_memory": True,
        "built": "device",
        "note": "",
    }
