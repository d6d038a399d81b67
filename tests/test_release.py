"""A release: what .ci/sbom.py says of native modules, and a whole one made by .ci/release."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.scripts import script_module

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest installs it there
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOTICES = {path.stem for path in (ROOT / "licenses").glob("*.txt")}
PINS = (ROOT / ".ci" / "release-requirements.txt").read_text(encoding="utf-8")

SYSTEM_LIBJPEG = b"\x7fELF.....libjpeg.so.62\0libc.so.6\0"
OWN_LIBJPEG = b"\x7fELF.....libc.so.6\0"
BOM: dict[str, Any] = {
    "metadata": {"component": {"bom-ref": "root", "name": "sdrpn", "version": "0.1.0"}},
    "components": [{"bom-ref": "numpy==2"}],
    "dependencies": [{"ref": "numpy==2"}, {"ref": "root", "dependsOn": ["numpy==2"]}],
}


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return script_module(".ci/sbom.py")


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def part_names(parts: list[Any]) -> set[str]:
    return {part.name for part in parts}


@pytest.mark.parametrize("suffix", ["abi3", "cpython-311-x86_64-linux-gnu"])
def test_a_library_of_the_system_is_not_part_of_a_wheel(sbom: ModuleType, suffix: str, tmp_path: Path) -> None:
    files = {f"sdrpn/_native.{suffix}.so": b"", f"sdrpn/_native_jpeg.{suffix}.so": SYSTEM_LIBJPEG}
    wheel = write_wheel(tmp_path / "a.whl", files)
    parts = sbom.parts_of(wheel, "2.4.0", "1.3.0", "3.1.3")
    assert part_names(parts) == NOTICES - {"libjpeg-turbo"}
    assert {part.modules for part in parts} == {("_native", "_native_jpeg")}


@pytest.mark.parametrize(
    "files",
    [
        {"sdrpn/_native_jpeg.abi3.so": OWN_LIBJPEG},
        {"sdrpn/_native_jpeg.abi3.so": SYSTEM_LIBJPEG, "sdrpn.libs/libjpeg-1a2b3c.so.62.3.0": b""},
    ],
    ids=["linked in", "beside it"],
)
def test_what_a_wheel_holds_has_its_notice(sbom: ModuleType, files: dict[str, bytes], tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", {"sdrpn/_native.abi3.so": b"", **files})
    parts = {part.name: part for part in sbom.parts_of(wheel, "2.4.0", "1.3.0", "3.1.3")}
    assert set(parts) == NOTICES
    assert parts["libjpeg-turbo"].version == "3.1.3"
    assert parts["libjpeg-turbo"].modules == ("_native_jpeg",)


@pytest.mark.parametrize("names", [[], ["_native"], ["_native_jpeg"]])
def test_a_wheel_without_native_modules_is_no_release(sbom: ModuleType, names: list[str], tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", {f"sdrpn/{name}.abi3.so": b"" for name in names})
    with pytest.raises(SystemExit, match=r"a\.whl has the native modules .*; expected _native and _native_jpeg"):
        sbom.parts_of(wheel, "2.4.0", "1.3.0", "3.1.3")


def test_parts_join_the_package(sbom: ModuleType, tmp_path: Path) -> None:
    wheel = write_wheel(
        tmp_path / "a.whl", {"sdrpn/_native.abi3.so": b"", "sdrpn/_native_jpeg.abi3.so": SYSTEM_LIBJPEG}
    )
    joined = sbom.with_parts(BOM, sbom.parts_of(wheel, "2.4.0", "1.3.0", "3.1.3"), wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert joined["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert [component["bom-ref"] for component in joined["components"]] == ["numpy==2", "nanobind", "robin-map"]
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in joined["dependencies"]}
    assert depends == {"numpy==2": [], "root": ["nanobind", "numpy==2", "robin-map"], "nanobind": [], "robin-map": []}
    assert len(BOM["components"]) == 1  # the given one stays as it was


def test_a_release_is_built_with_what_the_package_allows() -> None:
    """Exact versions, each with the digests of its files."""
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", PINS, flags=re.MULTILINE).strip())
    assert [entry.partition("\n")[0] for entry in entries if "--hash=sha256:" not in entry] == []
    pins = [Requirement(entry.partition("\\")[0]) for entry in entries]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    for requirement in map(Requirement, PYPROJECT["build-system"]["requires"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
    assert versions[NormalizedName("cyclonedx-bom")].startswith("7.")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the commit that is checked out: needs an index to take the pinned tools from."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: a release is made of a commit")
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(["bash", ROOT / ".ci" / "release", folder], check=True, timeout=1500)
    return folder


@pytest.mark.slow
def test_a_release(release: Path, tmp_path: Path) -> None:
    """.ci/release itself builds twice and compares; here it is what has come out."""
    version = PYPROJECT["project"]["version"]
    (wheel,) = release.glob(f"sdrpn-{version}-*.whl")
    source, bom = release / f"sdrpn-{version}.tar.gz", release / f"sdrpn-{version}.cdx.json"
    lines = (release / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, source, bom)}

    made = {"capture_output": True, "text": True, "check": True, "cwd": ROOT}
    committed = int(subprocess.run(["git", "log", "-1", "--format=%ct"], **made).stdout)  # type: ignore[call-overload]
    with tarfile.open(source) as archive:
        assert {member.mtime for member in archive.getmembers()} <= {0, committed}
    # Names of folders would tell builds apart.
    with zipfile.ZipFile(wheel) as archive:
        natives = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    assert len(natives) == 3
    assert not any(str(ROOT).encode() in native for native in natives)


@pytest.mark.slow
def test_the_sbom_of_a_release(release: Path, sbom: ModuleType) -> None:
    (wheel,) = release.glob("*.whl")
    (path,) = release.glob("*.cdx.json")
    bom = json.loads(path.read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    root = bom["metadata"]["component"]
    assert (root["name"], root["version"]) == ("sdrpn", PYPROJECT["project"]["version"])
    assert root["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]

    versions = {canonicalize_name(component["name"]): component["version"] for component in bom["components"]}
    wanted = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    here = [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()]
    assert len(here) >= 8
    for requirement in here:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement.name
    assert not {"torch", "transformers", "onnx", "pip", "pytest"} & set(versions)

    compiled = {
        component["name"]
        for component in bom["components"]
        if any(entry["name"] == "sdrpn:compiled-into" for entry in component.get("properties", ()))
    }
    assert compiled == (NOTICES if sbom.holds_libjpeg(wheel) else NOTICES - {"libjpeg-turbo"})
    pinned = re.search(r"^nanobind==(\S+)", PINS, re.MULTILINE)
    assert pinned is not None
    assert versions[NormalizedName("nanobind")] == pinned[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions[NormalizedName("robin-map")])
