"""What several test files need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Outputs of the official SD-RPN implementation, which lie beside a checkout of this project."""
    folder = Path(__file__).parents[1].parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: no outputs of the official implementation to compare with")
    return folder
