"""The pages that are made of the code are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_they_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "references.py"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_name_and_every_verb_is_there() -> None:
    import sdrpn
    from sdrpn.cli.main import VERBS

    api = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in sdrpn.__all__:
        assert name.startswith("__") or f"## {name}\n" in api or f"| `{name}` |" in api, name
    cli = (DOCS / "cli.md").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"## sdrpn {verb}\n" in cli
