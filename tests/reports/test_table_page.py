"""Cells are text: they never become markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.reports.table_page import Table, page_text

TABLE = Table("Checks", ("name", "bytes"), [("<b>a|b</b>\nc", "1"), ("FAILED: x", "2")], right=("bytes",))


def test_markdown() -> None:
    page = page_text(Path("a.md"), "A <title>", [TABLE, Table("empty", ("x",), [])])
    assert page.splitlines() == [
        "# A &lt;title&gt;",
        "",
        "## Checks",
        "",
        "| name | bytes |",
        "| --- | ---: |",
        "| &lt;b&gt;a\\|b&lt;/b&gt; c | 1 |",
        "| FAILED: x | 2 |",
    ]


def test_html() -> None:
    page = page_text(Path("a.html"), "A <title>", [TABLE])
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert "<td>&lt;b&gt;a|b&lt;/b&gt;\nc</td>" in page
    assert '<td class="number">1</td>' in page
    assert page.count('<tr class="failed">') == 1


def test_other_formats_are_refused() -> None:
    with pytest.raises(BadInput, match=r"expected one that ends in \.md or \.html"):
        page_text(Path("a.txt"), "", [])
