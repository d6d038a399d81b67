"""A bundle of 4 GB is packed, signed and verified in pieces."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.damage import copied
from tests.release.small_releases import write_key_pair

SIZE_BYTES = 4_000_000_000
MOST_BYTES = 300_000_000
CODE = """
import re, sys
from pathlib import Path
from sdrpn.cli.main import main
code = main(sys.argv[1:])
# Not ru_maxrss, which begins with that of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024, file=sys.stderr)
sys.exit(code)
"""


def peak_bytes(*arguments: str | Path) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    return int(done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_four_gigabytes(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copied(tiny_bundle, tmp_path)
    with (bundle / "weights" / "large.bin").open("wb") as stream:
        stream.truncate(SIZE_BYTES)
    digest, piece, left = hashlib.sha256(), bytes(8_000_000), SIZE_BYTES
    while left:
        digest.update(piece)
        left -= len(piece)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["weights/large.bin"] = {"size_bytes": SIZE_BYTES, "sha256": digest.hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    private, public = write_key_pair(tmp_path)
    archive = tmp_path / "large.sdrpn"
    peaks = {
        "pack": peak_bytes("release", "pack", bundle, "--name", "large", "--version", "1", "--out", archive),
        "sign": peak_bytes("release", "sign", archive, "--key", private),
        "verify": peak_bytes("release", "verify", archive, "--require-signed", public),
    }
    assert archive.stat().st_size > SIZE_BYTES
    archive.unlink()
    assert max(peaks.values()) <= MOST_BYTES, peaks
    print(peaks)
