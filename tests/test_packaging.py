"""pyproject.toml is complete and explains itself; the wheel holds one package and nothing else."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest installs it there
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads(TEXT)["project"]
SOURCES = ("sdrpn", "export", "engines", "runtime")
# Import names whose distributions are not always installed where the tests run.
DISTRIBUTIONS = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx-cu13-bindings",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
    "cuda": "cuda-python",
    "PIL": "pillow",
    "nvidia": "nvidia-nvimgcodec-cu13",
    # onnxscript installs them, since it needs them.
    "onnx": "onnxscript",
    "onnx_ir": "onnxscript",
}
# Licences of what is compiled into the native modules.
NOTICES = ("licenses/libjpeg-turbo.txt", "licenses/nanobind.txt", "licenses/robin-map.txt")
# What loads us as a plug-in: where it is imported, it is there.
HOSTS = {"lmms_eval"}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def names_in(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def imported_packages(folder: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield path, node.module.partition(".")[0]


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_every_extra_says_what_needs_it(extra: str) -> None:
    found = re.search(rf"^# .+\n{re.escape(extra)} = \[", TEXT, re.MULTILINE)
    assert found is not None, f"[{extra}] has no comment above it"


def test_the_extras_are_those_that_the_documentation_names() -> None:
    assert set(PROJECT["optional-dependencies"]) == {
        "cuda",
        "device",
        "tensorrt",
        "tensorrt-rtx",
        "export",
        "train",
        "nvimgcodec",
        "heif",
        "video",
        "hub",
        "serve",
        "otel",
        "mcp",
        "release",
        "openvino",
        "ray",
        "dev",
    }


def test_everything_imported_is_asked_for() -> None:
    asked = names_in(PROJECT["dependencies"]).union(
        *(names_in(requirements) for requirements in PROJECT["optional-dependencies"].values())
    )
    installed = packages_distributions()
    unasked = [
        f"{path.relative_to(ROOT)} imports {package}"
        for folder in SOURCES
        for path, package in imported_packages(folder)
        if package not in sys.stdlib_module_names
        and package not in {"sdrpn", *HOSTS}
        and not asked & {DISTRIBUTIONS.get(package, package), *map(normal, installed.get(package, ()))}
    ]
    assert unasked == []


def test_the_base_install_has_no_framework() -> None:
    assert not names_in(PROJECT["dependencies"]) & {"torch", "transformers", "onnx", "onnxscript", "safetensors"}


def test_the_metadata() -> None:
    metadata = distribution("sdrpn").metadata
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("License-File") or ()) == {"LICENSE", *NOTICES}
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Summary"] == PROJECT["description"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_changelog_has_this_version_or_what_comes_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(PROJECT['version'])})\]", changelog, re.MULTILINE)


@pytest.mark.parametrize("name", ["__init__.py", "py.typed", "export", "engines", "runtime"])
def test_the_type_checkers_see_one_package(name: str) -> None:
    link = ROOT / ".typing" / "sdrpn" / name
    assert link.is_symlink()
    assert link.exists(), f"{link} points nowhere"


@pytest.mark.parametrize("script", ["lowest", "run", "sanitize"])
def test_scripts_name_tests_that_are_there(script: str) -> None:
    names = set(re.findall(r"\btests/[\w/]+(?:\.py)?", (ROOT / ".ci" / script).read_text(encoding="utf-8")))
    assert names
    assert {name for name in names if not (ROOT / name).exists()} == set()


PROGRAM = """
import sdrpn
from sdrpn.runtime import EngineOptions

reveal_type(sdrpn.Session.open("demo"))
reveal_type(sdrpn.BadInput.exit_code)
reveal_type(EngineOptions().device)
sdrpn.unknown_name
"""


@pytest.mark.slow
def test_type_checkers_understand_an_editable_install(tmp_path: Path) -> None:
    """Installed from nothing into an environment of its own, and read by mypy from a folder elsewhere."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    options = ("-C", "cmake.define.SDRPN_NATIVE=OFF", "-C", f"build-dir={tmp_path / 'build'}", "-e", str(ROOT))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet"]
    subprocess.run([*pip, *options], check=True, timeout=600)
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py"]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    told = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("program.py")]
    assert told == [
        'note: Revealed type is "sdrpn.runtime.session.Session"',
        'note: Revealed type is "int"',
        'note: Revealed type is "int"',
        'error: Module has no attribute "unknown_name"  [attr-defined]',
    ]


@pytest.mark.slow
def test_the_wheel(tmp_path: Path) -> None:
    """Builds in a fresh environment, as pip does for users: needs an index to take the build backend from."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=600)
    (wheel,) = tmp_path.glob("sdrpn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    for folder in SOURCES:
        place = "sdrpn" if folder == "sdrpn" else f"sdrpn/{folder}"
        expected = {f"{place}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
        assert expected <= set(names)
    assert "sdrpn/py.typed" in names
    page = {f"sdrpn/{path.relative_to(ROOT)}" for path in (ROOT / "runtime" / "server" / "page").iterdir()}
    assert {"sdrpn/runtime/server/page/index.html", "sdrpn/runtime/server/page/main.js"} <= page <= set(names)
    for notice in ("LICENSE", *NOTICES):
        assert f"sdrpn-{PROJECT['version']}.dist-info/licenses/{notice}" in names
    assert {name.partition("/")[0] for name in names} == {"sdrpn", f"sdrpn-{PROJECT['version']}.dist-info"}
    data = {
        f"sdrpn/{path.relative_to(ROOT / 'sdrpn').as_posix()}"
        for folder in ("default", "tags/shipped")
        for path in (ROOT / "sdrpn" / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"sdrpn/default/manifest.json", "sdrpn/tags/shipped/scene.png"} <= data <= set(names)
    run_demo_of(tmp_path / "installed", tmp_path)


def run_demo_of(folder: Path, out: Path) -> None:
    """From an unpacked wheel: -S, so that the editable install of the tests is not there."""
    paths = [str(folder), *(path for path in sys.path if path.endswith("site-packages"))]
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split('|'); from sdrpn.cli.main import main; main(['demo', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, "|".join(paths)],
        cwd=out,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["overlay"] == "sdrpn-demo.png"
    assert (out / "sdrpn-demo.png").is_file()
