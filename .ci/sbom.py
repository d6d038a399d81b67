"""Add what is compiled into the native modules to the SBOM of an installed wheel.

cyclonedx-py lists the distributions of an environment. What is linked into a module is no distribution: nanobind with
its hash map, and libjpeg-turbo where the wheel does not leave it to the system.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

NATIVE_MODULE = re.compile(r"sdrpn/(_native\w*)\.[\w.-]*so")
JPEG_MODULE = "_native_jpeg"
# A module that is linked to a library holds the library's file name.
LIBJPEG_FILE = re.compile(rb"libjpeg[\w.-]*\.so")


@dataclass(frozen=True)
class Part:
    """Something compiled into native modules."""

    name: str
    version: str
    license: str  # an SPDX expression
    purl: str
    modules: tuple[str, ...]

    def component(self) -> dict[str, Any]:
        return {
            "type": "library",
            "bom-ref": self.name,
            "name": self.name,
            "version": self.version,
            "purl": self.purl,
            "licenses": [{"expression": self.license}],
            "properties": [{"name": "sdrpn:compiled-into", "value": module} for module in self.modules],
        }


def native_modules(wheel: Path) -> dict[str, bytes]:
    """The native modules of a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        found = ((name, NATIVE_MODULE.fullmatch(name)) for name in archive.namelist())
        return {match[1]: archive.read(name) for name, match in found if match}


def holds_libjpeg(wheel: Path) -> bool:
    """Whether libjpeg-turbo is in the wheel: linked into its module, or as a library beside it."""
    with zipfile.ZipFile(wheel) as archive:
        if any(LIBJPEG_FILE.search(Path(name).name.encode()) for name in archive.namelist()):
            return True
    module = native_modules(wheel).get(JPEG_MODULE)
    return module is not None and LIBJPEG_FILE.search(module) is None


def parts_of(wheel: Path, nanobind: str, robin_map: str, libjpeg_turbo: str) -> list[Part]:
    """What a wheel's native modules are made of, with these versions."""
    modules = tuple(sorted(native_modules(wheel)))
    if not {"_native", JPEG_MODULE} <= set(modules):
        raise SystemExit(f"{wheel.name} has the native modules {modules}; expected _native and {JPEG_MODULE}")
    parts = [
        Part("nanobind", nanobind, "BSD-3-Clause", f"pkg:pypi/nanobind@{nanobind}", modules),
        Part("robin-map", robin_map, "MIT", f"pkg:github/Tessil/robin-map@v{robin_map}", modules),
    ]
    if holds_libjpeg(wheel):
        purl = f"pkg:github/libjpeg-turbo/libjpeg-turbo@{libjpeg_turbo}"
        parts.append(Part("libjpeg-turbo", libjpeg_turbo, "IJG AND BSD-3-Clause AND Zlib", purl, (JPEG_MODULE,)))
    return parts


def with_parts(bom: dict[str, Any], parts: list[Part], wheel: Path) -> dict[str, Any]:
    """The SBOM with these parts, which the package depends on, and the wheel's digest."""
    root = bom["metadata"]["component"]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    described = {
        **root,
        "purl": f"pkg:pypi/{root['name']}@{root['version']}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    names = [part.name for part in parts]
    dependencies = [
        {**entry, "dependsOn": sorted([*entry.get("dependsOn", ()), *names])}
        if entry["ref"] == root["bom-ref"]
        else entry
        for entry in bom["dependencies"]
    ]
    return {
        **bom,
        "metadata": {**bom["metadata"], "component": described},
        "components": [*bom["components"], *(part.component() for part in parts)],
        "dependencies": [*dependencies, *({"ref": name} for name in names)],
    }


def robin_map_version() -> str:
    """Of the copy that nanobind brings along."""
    place = "nanobind/ext/robin_map/include/tsl/robin_growth_policy.h"
    header = Path(str(distribution("nanobind").locate_file(place))).read_text(encoding="utf-8")
    numbers = (re.search(rf"#define TSL_RH_VERSION_{part} (\d+)", header) for part in ("MAJOR", "MINOR", "PATCH"))
    return ".".join(number[1] for number in numbers if number)


def libjpeg_turbo_version(python: Path) -> str:
    """Of the headers that the installed module was compiled with."""
    # -I: not from a checkout that is the working directory.
    code = f"import sdrpn.{JPEG_MODULE} as module; print(module.LIBJPEG_TURBO_VERSION)"
    return subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def check(text: str) -> None:
    """Hold an SBOM to its schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"the SBOM does not fit CycloneDX 1.6: {fault}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bom", type=Path, help="what cyclonedx-py wrote of an environment with the wheel")
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True, help="the environment's interpreter")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bom = json.loads(arguments.bom.read_text(encoding="utf-8"))
    nanobind = distribution("nanobind").version
    parts = parts_of(arguments.wheel, nanobind, robin_map_version(), libjpeg_turbo_version(arguments.python))
    text = json.dumps(with_parts(bom, parts, arguments.wheel), indent=2) + "\n"
    check(text)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
