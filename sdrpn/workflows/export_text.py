"""What an export wrote, as lines for somebody at a command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdrpn.families.registry import family_of
from sdrpn.host.sizes import text_from_bytes
from sdrpn.workflows.export import ExportResult

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Manifest

__all__ = ["export_text"]


def export_text(result: ExportResult) -> Iterator[str]:
    """What was written, and how the bundle looks and is asked, as lines."""
    manifest = result.manifest
    graphs = len(manifest.variants[result.variants[0]].graphs)
    yield f"{result.out}: {' and '.join(result.variants)}, {text_from_bytes(result.size_bytes)} in {graphs} graphs"
    yield from result.notes
    if manifest.spec.rpn is None:
        yield "no RPN in this checkpoint: the bundle answers as the plain model (--no-roi); see --rpn"
    else:
        yield f"looks again at cells above {manifest.own_policy.about}"
        if manifest.gate_about is not None:
            yield f"gate: {manifest.gate_about}"
    if manifest.tokenizer is not None:
        yield f"questions are put by {_way_of_asking(manifest)}"
    else:
        yield "no tokenizer in this checkpoint: the bundle answers by token ids only, not through `sdrpn ask`"


def _way_of_asking(manifest: Manifest) -> str:
    template, names = manifest.spec.prompt.template, family_of(manifest.spec).prompt_names
    origin = "given" if manifest.given_template is not None else "of the checkpoint"
    return f"the prompt {template}" if template in names else f"the chat template {origin}"
