"""Ask the shipped model with an installed package, away from the checkout; raise where the answer is wrong."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SDRPN = Path(sys.executable).with_name("sdrpn")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SDRPN, *arguments], capture_output=True, text=True, check=False, timeout=120)


def main() -> None:
    demo = run("demo", "--json")
    assert demo.returncode == 0, demo.stderr
    told = json.loads(demo.stdout)
    assert told["sdrpn"]["text"] == told["expected"] != told["plain"]["text"], told
    installed = version("onnxruntime")
    print(f"Python {platform.python_version()}, ONNX Runtime {installed}: {told['question']} {told['sdrpn']['text']}")
    from sdrpn.tags import shipped_scene

    scene = shipped_scene()
    fused = run("ask", "demo", str(scene.picture), scene.question, "--variant", "fused-int8-cpu")
    primitive = run("ask", "demo", str(scene.picture), scene.question, "--variant", "primitive-int8-cpu")
    assert (primitive.returncode, primitive.stdout.strip()) == (0, scene.expected), primitive.stderr
    if tuple(map(int, installed.split(".")[:2])) >= (1, 25):
        assert (fused.returncode, fused.stdout) == (0, primitive.stdout), fused.stderr
    else:
        assert fused.returncode == 2, fused.stderr
        assert "use the variant primitive-int8-cpu" in fused.stderr, fused.stderr
        print(f"fused: {fused.stderr.strip()}")


if __name__ == "__main__":
    main()
