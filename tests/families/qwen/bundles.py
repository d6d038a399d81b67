"""Bundles of small random models of both families, with a tokenizer, for tests of everything above the graphs."""

from __future__ import annotations

from pathlib import Path

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from tests.families.qwen.models import KINDS

__all__ = ["qwen_bundle"]


def qwen_bundle(kind: str, folder: Path) -> Path:
    """A bundle in fp32 of one of `models.KINDS`, below an empty folder."""
    write_random_checkpoint(folder / "checkpoint", KINDS[kind], with_tokenizer=True)
    export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions("fp32"))
    return folder / "bundle"
