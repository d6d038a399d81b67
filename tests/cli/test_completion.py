"""`sdrpn completion`: bash completes what the command line really takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Command

# Loads the script, and asks it as readline does when TAB is pressed after a line.
COMPLETE = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9
read -ra COMP_WORDS <<<"$2"
case "$2" in *' ') COMP_WORDS+=("") ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete sdrpn "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "expected", "others"),
    [
        ("sdrpn as", {"ask"}, {"build"}),
        ("sdrpn ask --thr", {"--threads", "--threshold"}, {"--overlay"}),
        ("sdrpn ask --backend ten", {"tensorrt"}, {"auto"}),
        ("sdrpn ask dem", {"demo"}, set()),
        ("sdrpn inspect bun", {"bundle/"}, set()),
        ("sdrpn build b --target jetson-t", {"jetson-thor"}, {"h100"}),
        ("sdrpn completion ", {"bash", "zsh", "fish"}, set()),
    ],
)
def test_bash(sdrpn: Command, tmp_path: Path, line: str, expected: set[str], others: set[str]) -> None:
    command = Path(sys.executable).with_name("sdrpn")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    (tmp_path / "bundle").mkdir()
    script = tmp_path / "sdrpn.bash"
    script.write_text(sdrpn("completion", "bash").out, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", script, line],
        cwd=tmp_path,
        env={"PATH": f"{command.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = {word.strip() for word in done.stdout.splitlines()}
    assert expected <= found, done
    assert not others & found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_every_shell(sdrpn: Command, shell: str) -> None:
    found = sdrpn("completion", shell)
    assert (found.code, found.err) == (0, "")
    assert "sdrpn" in found.out
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=found.out, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
