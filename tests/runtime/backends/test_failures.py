"""Errors of libraries: whose fault, what is said of it, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.errors import BadBundle, RunFailed
from sdrpn.runtime.backends.failures import first_line, graph_error, not_saved


class TestGraphError:
    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), OSError("No space left on disk")])
    def test_of_the_machine(self, error: Exception) -> None:
        found = graph_error("it failed", error)
        assert isinstance(found, RunFailed)
        assert str(found) == "it failed"

    @pytest.mark.parametrize(
        ("saved", "advice"),
        [
            (False, "export the bundle again"),
            (True, "make the saved graphs again with `sdrpn optimize`, or run without them"),
        ],
    )
    def test_of_the_graph(self, saved: bool, advice: str) -> None:
        found = graph_error("it failed", ValueError("no such operator"), saved=saved)
        assert isinstance(found, BadBundle)
        assert str(found) == f"it failed; {advice}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bad input\nsecond line", "bad input"),
        (
            "Exception from src/core.cpp:84:\nCheck 'false' failed at src/a.cpp:47:\n\n  Loading model\n",
            "Loading model",
        ),
        (
            "Exception from src/infer_request.cpp:246:\nCaught exception: Exception from src/graph.cpp:1628:\n"
            "Node _Product_15 of type Reference\nValueError: threads is 3; expected 1 to 2\n\nAt:\n  a.py(3): work\n",
            "ValueError: threads is 3; expected 1 to 2",
        ),
        ("Exception from src/core.cpp:84:", "Exception from src/core.cpp:84:"),
        ("", "ValueError"),
    ],
)
def test_the_line_that_says_something(text: str, expected: str) -> None:
    assert first_line(ValueError(text)) == expected


def test_what_was_not_saved(tmp_path: Path) -> None:
    told = str(not_saved("A Library 1.0", "trunk", tmp_path / "trunk.xml", "stream error"))
    assert told.startswith("the trunk graph was not saved: A Library 1.0 could not write trunk.xml (stream error); its")
    assert told.endswith(" free: free some space and try again")
