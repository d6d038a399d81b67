"""What travels with a release for people and scanners: an SBOM (CycloneDX 1.6) and provenance (SLSA 1, in-toto).

Knows names, versions and digests; reads no model. Equal inputs give equal bytes.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

from sdrpn.bundle.engine_manifest import EngineManifest
from sdrpn.bundle.manifest import Manifest
from sdrpn.host.listed_files import FileInfo

__all__ = ["provenance_bytes", "sbom_bytes"]

# What of an engine's manifest says how it was built.
_BUILD_OPTIONS = (
    "variant",
    "precision",
    "flavour",
    "library_version",
    "compute_capabilities",
    "contexts",
    "max_batch",
    "opt_level",
    "workspace_mb",
    "version_compatible",
    "hardware_compatibility",
)


def sbom_bytes(
    name: str,
    number: int,
    created: str,
    manifest: Manifest,
    files: Mapping[str, FileInfo],
    engines: Mapping[str, Sequence[EngineManifest]],
) -> bytes:
    """The model, its files, and the libraries that it was made with and answers with.

    Args:
        number: version of the release
        files: path -> size and digest
        engines: target -> manifests
    """
    checkpoint = manifest.source.get("checkpoint")
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": name,
        "version": str(number),
        "properties": [
            {"name": "sdrpn:checkpoint", "value": str(checkpoint)},
            {"name": "sdrpn:checkpoint-sha256", "value": str(manifest.source.get("sha256"))},
            {"name": "sdrpn:variants", "value": ", ".join(sorted(manifest.variants))},
            {"name": "sdrpn:targets", "value": ", ".join(sorted(engines)) or "none"},
        ],
    }
    components = [*_file_components(files), *_library_components(manifest, engines)]
    value = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))}",
        "version": 1,
        "metadata": {"timestamp": created, "component": model},
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [component["bom-ref"] for component in components]}],
    }
    return _json_bytes(value)


def provenance_bytes(
    created: str,
    manifest: Manifest,
    files: Mapping[str, FileInfo],
    engines: Mapping[str, Sequence[EngineManifest]],
) -> bytes:
    """An in-toto statement with SLSA's provenance: what was made from what, by which options and tools."""
    checkpoint, digest = manifest.source.get("checkpoint"), manifest.source.get("sha256")
    value = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": file.sha256}} for name, file in sorted(files.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:sdrpn:release:v1",
                "externalParameters": {"checkpoint": checkpoint, "targets": sorted(engines)},
                "internalParameters": {
                    f"{target}/{engine.graph}": {option: getattr(engine, option) for option in _BUILD_OPTIONS}
                    for target, built in sorted(engines.items())
                    for engine in built
                },
                "resolvedDependencies": [
                    {"name": checkpoint, "digest": {"sha256": digest}},
                    *({"name": tool, "uri": _purl(tool, number)} for tool, number in sorted(manifest.tools.items())),
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:sdrpn:pack", "version": {"sdrpn": version("sdrpn")}},
                "metadata": {"startedOn": created, "finishedOn": created},
            },
        },
    }
    return _json_bytes(value)


def _file_components(files: Mapping[str, FileInfo]) -> Iterator[dict[str, Any]]:
    for name, file in sorted(files.items()):
        yield {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            "properties": [{"name": "sdrpn:size-bytes", "value": str(file.size_bytes)}],
        }


def _library_components(
    manifest: Manifest, engines: Mapping[str, Sequence[EngineManifest]]
) -> Iterator[dict[str, Any]]:
    """Libraries of the export, of the engines, and of an install that answers; each with the role that it has."""
    found: dict[tuple[str, str], set[str]] = {}
    for tool, number in manifest.tools.items():
        found.setdefault((tool, number), set()).add("export")
    for built in engines.values():
        for engine in built:
            found.setdefault((engine.flavour, engine.library_version), set()).add("engines")
    for tool, number in _installed():
        found.setdefault((tool, number), set()).add("runtime")
    for (tool, number), roles in sorted(found.items()):
        yield {
            "type": "library",
            "bom-ref": _purl(tool, number),
            "name": tool,
            "version": number,
            "purl": _purl(tool, number),
            "properties": [{"name": "sdrpn:used-for", "value": ", ".join(sorted(roles))}],
        }


def _installed() -> Iterator[tuple[str, str]]:
    """This package and what its base install asks for, in the versions that are here."""
    yield "sdrpn", version("sdrpn")
    for text in requires("sdrpn") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                yield requirement.name, version(requirement.name)
            except PackageNotFoundError:  # onnxruntime may be uninstalled where engines answer
                continue


def _purl(name: str, number: str) -> str:
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{number}"


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
