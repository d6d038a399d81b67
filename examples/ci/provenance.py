"""What went into a bundle's engines and what came out, as an in-toto statement with SLSA provenance. Unsigned.

    python examples/ci/provenance.py BUNDLE >provenance.json

Subjects are the engines and the files that they need beside them; dependencies are the checkpoint, this source tree and
every Python package, with versions: what a software bill of materials lists. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

# Entries of an engine's manifest that say how it was built.
OPTIONS = (
    *("flavour", "library_version", "compute_capabilities", "variant", "max_context", "max_batch", "opt_level"),
    *("workspace_mb", "weight_streaming", "hardware_compatibility", "version_compatible", "refit"),
    *("profiling_verbosity", "timing_cache", "gpu", "driver", "cuda", "system", "machine"),
)


def main() -> int:
    """Print the statement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--started", default=now(), help="when the work began, as RFC 3339 writes it")
    args = parser.parse_args()
    print(json.dumps(statement(args.bundle, args.started), indent=1))
    return 0


def statement(bundle: Path, started: str) -> dict[str, Any]:
    """Reads manifests and hashes what is shipped."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    engines = sorted((bundle / "engines").glob("*/*.engine.json"))
    built = {str(path.relative_to(bundle)): json.loads(path.read_text(encoding="utf-8")) for path in engines}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": sha256(bundle / name)}} for name in shipped(manifest, built)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:sdrpn:engines:v1",
                "externalParameters": {
                    "checkpoint": manifest["source"]["checkpoint"],
                    "targets": sorted({engine["target"] for engine in built.values()}),
                },
                "internalParameters": {
                    name: {option: engine[option] for option in OPTIONS} for name, engine in built.items()
                },
                "resolvedDependencies": list(dependencies(manifest)),
            },
            "runDetails": {
                "builder": {"id": builder(), "version": {"sdrpn": manifest["tools"]["sdrpn"]}},
                "metadata": {"startedOn": started, "finishedOn": now()},
            },
        },
    }


def shipped(manifest: dict[str, Any], built: dict[str, Any]) -> Iterator[str]:
    """The engines with what lies beside them, and what an answer takes from the bundle."""
    yield "manifest.json"
    yield from sorted({variant["embedding"] for variant in manifest["variants"].values()})
    if manifest["tokenizer"]:
        yield manifest["tokenizer"]
    for name in built:
        stem = name.removesuffix(".engine.json")
        yield from (f"{stem}.engine", name, f"{stem}.layers.json")


def dependencies(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The checkpoint, this source tree, and all Python packages of this environment."""
    yield {"name": manifest["source"]["checkpoint"], "digest": {"sha256": manifest["source"]["sha256"]}}
    commit = git_commit()
    if commit is not None:
        yield {"name": "source", "digest": {"gitCommit": commit}}
    yield {"name": "python", "uri": f"pkg:generic/python@{platform.python_version()}"}
    packages = {package.metadata["Name"]: package.version for package in distributions()}
    for name, version in sorted(packages.items(), key=lambda package: package[0].lower()):
        yield {"name": name, "uri": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"}


def git_commit() -> str | None:
    """The commit of the tree that contains this file; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def builder() -> str:
    """Where this runs: a GitHub workflow says so itself."""
    if "GITHUB_RUN_ID" in os.environ:
        return "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(os.environ)
    return f"urn:host:{platform.node()}"


def now() -> str:
    """In UTC, as RFC 3339 writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
