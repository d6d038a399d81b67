"""What is asked for, what is installed, and the command between the two."""

from __future__ import annotations

import importlib
import json
import platform
import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from sdrpn.errors import MissingDependency
from sdrpn.host import libraries
from sdrpn.host.libraries import BASE, EXTRAS, importing_extra, install_command, installed_version, read_extras

LINES = (
    "numpy>=1.24",
    "onnxscript>=0.7.1; extra == 'export'",
    "sdrpn[export]; extra == 'train'",
    "torch==2.13.0; extra == 'train'",
    "sdrpn[train]; extra == 'dev'",
    "types-psutil; extra == 'dev'",
    'tensorrt>=10.3; platform_machine == "x86_64" and extra == "tensorrt"',
)


def nothing_installed(name: str) -> str | None:
    return None


def test_extras_include_each_other() -> None:
    extras = read_extras(LINES, nothing_installed)
    assert extras[BASE].missing == ("numpy",)
    assert extras["export"].missing == ("onnxscript",)
    assert extras["train"].missing == ("torch", "onnxscript")
    assert extras["dev"].missing == ("types-psutil", "torch", "onnxscript")
    assert extras["export"].libraries[0].extras == ("export", "train", "dev")


def test_an_extra_that_includes_a_library_twice_is_listed_once() -> None:
    lines = ('web; extra == "serve"', 'web; extra == "mcp"', 'sdrpn[serve,mcp]; extra == "dev"')
    extras = read_extras(lines, nothing_installed)
    assert extras["serve"].libraries[0].extras == ("serve", "mcp", "dev")
    assert extras["dev"].missing == ("web",)


@pytest.mark.parametrize(("machine", "missing"), [("x86_64", ("tensorrt",)), ("aarch64", ())])
def test_a_requirement_for_another_processor_is_not_missing(
    machine: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert read_extras(LINES, nothing_installed)["tensorrt"].missing == missing


@pytest.mark.parametrize(
    ("version", "wanted", "good"),
    [
        ("1.24", ">=1.24", True),
        ("1.24.0", "==1.24", True),
        ("1.23.9", ">=1.24", False),
        ("1.100", ">=1.24", True),
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.14.0", "==2.13.0", False),
        ("2.0", ">=1.24,<2", False),
        ("1.9", ">=1.24,<2", False),
        ("1.30", ">=1.24,<2", True),
        ("7.2.2.20261111", "", True),
        ("1.24.0rc1", ">=1.24", True),
    ],
)
def test_versions(version: str, wanted: str, good: bool) -> None:
    extra = read_extras((f"numpy{wanted}",), lambda name: version)[BASE]
    assert extra.libraries[0].good is good


def test_this_package_asks_for_what_its_metadata_says() -> None:
    extras = read_extras()
    assert "onnxruntime" in [library.name for library in extras[BASE].libraries]
    assert "torch" in [library.name for library in extras["train"].libraries]
    assert "torch" not in [library.name for library in extras["export"].libraries]


def test_every_extra_of_the_metadata_is_explained() -> None:
    declared = distribution("sdrpn").metadata.get_all("Provides-Extra") or []
    assert set(EXTRAS) == {BASE, *declared}


def test_an_absent_library_has_no_version() -> None:
    assert installed_version("a-library-that-nobody-wrote") is None
    assert installed_version("numpy") is not None


class TestImportingAnExtra:
    def test_a_library_that_is_not_there_is_named(self) -> None:
        expected = r"sdrpn paint needs an_easel, which is not installed; install it: pip install 'sdrpn\[export\]'"
        with pytest.raises(MissingDependency, match=expected), importing_extra("export", "sdrpn paint"):
            importlib.import_module("an_easel.of_wood")

    def test_a_library_that_does_not_fit_says_why(self) -> None:
        expected = r"cannot import numpy \(cannot import name 'no_such'.*\); install a supported version: pip install"
        with pytest.raises(MissingDependency, match=expected), importing_extra("export", "sdrpn paint"):
            exec("from numpy import no_such")

    def test_a_fault_of_our_own_passes(self) -> None:
        with pytest.raises(ModuleNotFoundError, match=r"sdrpn\.paint"), importing_extra("export", "sdrpn paint"):
            importlib.import_module("sdrpn.paint")


class Installed:
    """A distribution that came from somewhere."""

    def __init__(self, origin: object) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        return None if self.origin is None else json.dumps(self.origin)


EDITABLE = {"url": "file:///src/with%20space", "dir_info": {"editable": True}}
FOLDER = {"url": "file:///src/sdrpn", "dir_info": {}}
WHEEL = {"url": "file:///w/sdrpn-0.1.0-py3-none-any.whl", "archive_info": {}}


@pytest.mark.parametrize(
    ("prefix", "origin", "expected"),
    [
        ("/venv", None, "{python} -m pip install 'sdrpn[cuda]'"),
        ("/venv", EDITABLE, "{python} -m pip install -e '/src/with space[cuda]'"),
        ("/venv", FOLDER, "{python} -m pip install '/src/sdrpn[cuda]'"),
        ("/venv", WHEEL, "{python} -m pip install '/w/sdrpn-0.1.0-py3-none-any.whl[cuda]'"),
        ("/home/me/.local/share/uv/tools/sdrpn", None, "uv tool install --force 'sdrpn[cuda]'"),
        ("/home/me/.local/share/uv/tools/sdrpn", EDITABLE, "uv tool install --force -e '/src/with space[cuda]'"),
        (
            "/home/me/.local/share/pipx/venvs/sdrpn",
            WHEEL,
            "pipx install --force '/w/sdrpn-0.1.0-py3-none-any.whl[cuda]'",
        ),
        ("/home/me/.local/share/pipx/venvs/sdrpn", EDITABLE, "pipx install --force --editable '/src/with space[cuda]'"),
    ],
)
def test_the_command_fits_how_the_package_was_installed(
    monkeypatch: pytest.MonkeyPatch, prefix: str, origin: object, expected: str
) -> None:
    monkeypatch.setattr(libraries, "distribution", lambda name: Installed(origin))
    monkeypatch.setattr(sys, "prefix", prefix)
    assert install_command("cuda") == expected.format(python=sys.executable)


def test_an_environment_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "distribution", lambda name: Installed(None))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert install_command() == f"uv pip install --python {sys.executable} sdrpn"


def test_an_editable_install_is_extended_where_it_lies() -> None:
    root = Path(__file__).parents[2]
    found = re.search(r" -e '?([^']+)\[cuda\]", install_command("cuda"))
    if found is None:
        pytest.skip("not an editable install")
    assert Path(found.group(1)) == root
