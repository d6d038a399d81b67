"""What `sdrpn doctor` prints, on this machine and on a made-up one."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from sdrpn.cli.main import main
from sdrpn.host.libraries import EXTRAS
from sdrpn.host.machine import Machine, read_machine
from sdrpn.workflows import diagnosis
from tests.cli.command import Command
from tests.workflows.machines import ORIN


class TestOnThisMachine:
    def test_the_json_form(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        value = json.loads(captured.out)
        assert list(value) == [
            "format_version",
            "sdrpn",
            "machine",
            "libraries",
            "providers",
            "extras",
            "abilities",
            "notes",
            "plan",
        ]
        assert value["plan"] is None
        assert value["format_version"] == 1
        assert set(value["machine"]) == {field.name for field in dataclasses.fields(Machine)}
        assert [extra["name"] for extra in value["extras"]] == list(EXTRAS)
        assert set(value["libraries"][0]) == {"name", "version", "wanted", "good", "extras"}
        assert set(value["abilities"][0]) == {"name", "ready", "detail", "command"}
        assert "CPUExecutionProvider" in value["providers"]

    def test_the_text_form_names_every_extra_and_library(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor"]) == 0
        text = capsys.readouterr().out
        for name in (*EXTRAS, "onnxruntime", "numpy", "torch", "transformers", "cuda-python"):
            assert re.search(rf"^{name} ", text, re.MULTILINE), name

    @pytest.mark.parametrize("parts", ["all", "look"])
    def test_what_a_bundle_needs_here(self, sdrpn: Command, parts: str) -> None:
        found = sdrpn("doctor", "--bundle", "demo", "--parts", parts, "--json").json()["plan"]
        expected = sdrpn("plan", "demo", "--parts", parts, "--json").json()
        for entry in ("bundle", "parts", "needs", "total_bytes", "other_parts_bytes"):
            assert found[entry] == expected[entry]
        name = "looks alone" if parts == "all" else "with answers"
        assert re.search(rf"^{name} .* MB: 7\.0 MB ", sdrpn("doctor", "--bundle", "demo", "--parts", parts).out, re.M)

    def test_nothing_heavy_is_imported(self) -> None:
        code = (
            "import sys; from sdrpn.cli.main import main; main(['doctor', '--json'])\n"
            "sys.exit(str([name for name in ('torch', 'transformers', 'onnx', 'tensorrt', 'PIL') "
            "if name in sys.modules] or ''))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr.strip() == ""

    def test_the_machine(self) -> None:
        machine = read_machine()
        assert machine.cpu_cores >= 1
        assert machine.python == sys.version.split()[0]


def test_the_text_form_of_a_jetson(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(diagnosis, "read_machine", lambda: ORIN)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^GPU +Orin \(nvgpu\), unknown, compute capability unknown, driver 540\.4\.0$", text, re.M)
    assert re.search(r"^Jetson +NVIDIA Jetson AGX Orin Developer Kit, JetPack 6, L4T 36\.4\.3$", text, re.M)
    assert "Note: on Jetson" in text
