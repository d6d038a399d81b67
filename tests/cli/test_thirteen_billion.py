"""A bundle that says it has 13 billion parameters, on machines that cannot hold it: refused before a weight is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle
from sdrpn.bundle.signatures import expected_signatures
from sdrpn.engines import builder
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from tests.cli.command import Command, refusal
from tests.cli.test_plan import with_memory
from tests.damage import edit_json

LLM: dict[str, Any] = {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "head_dim": 128, "mlp_width": 13824}
WEIGHTS_BYTES = 28_000_000_000


@pytest.fixture(scope="module")
def bundle(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.5-13B's sizes in the manifest of a tiny model."""
    path = tmp_path_factory.mktemp("13b") / "bundle"
    export_bundle(text_checkpoint, path, ExportOptions("fp16"))
    spec = open_bundle(path).spec
    large = dataclasses.replace(spec, llm=dataclasses.replace(spec.llm, **LLM, max_context=4096))
    edit_json(path / MANIFEST_NAME, lambda manifest: enlarge(manifest, large))
    return path


def enlarge(manifest: Any, spec: ModelSpec) -> None:
    """As the export of such a model would have written it, but for the files."""
    manifest["max_context"] = manifest["spec"]["llm"]["max_context"] = spec.llm.max_context
    manifest["spec"]["llm"].update(LLM)
    manifest["rotary"]["inverse"] *= LLM["head_dim"] // 2 // len(manifest["rotary"]["inverse"])
    weights = [name for name in manifest["files"] if name.endswith(".bin")]
    for name in weights:
        manifest["files"][name]["size_bytes"] = WEIGHTS_BYTES // len(weights)
    manifest["files"]["weights/embed.fp16.bin"]["size_bytes"] = 2 * spec.llm.vocabulary * spec.llm.width
    for name, variant in manifest["variants"].items():
        for_cpu = name.endswith("-cpu")
        signatures = expected_signatures(spec, variant["dialect"], variant["precision"], for_cpu=for_cpu)
        for graph, signature in signatures.items():
            for side in ("inputs", "outputs"):
                tensors = getattr(signature, side).values()
                variant["graphs"][graph][side] = [dataclasses.asdict(tensor) for tensor in tensors]


def test_plan_says_what_is_needed_and_exits_1(sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 24_000_000_000)
    for arguments, memory in (((), 24e9), (("--target", "rtx-4090"), 24e9), (("--target", "l4"), 24e9)):
        outcome = sdrpn("plan", bundle, *arguments, "--json")
        found = json.loads(outcome.out)
        assert (outcome.code, found["fits"], found["largest_context"]) == (1, False, 0)
        assert found["memory_bytes"] == memory
        assert found["needs"]["weights_bytes"] > 24e9
        # 2 * (40 + 1) caches of 5120 fp16 channels and the scores' keys, and the taps in fp32. On a target for what
        # engines are built for by default.
        rows = 2048 if arguments else 4096
        assert found["needs"]["caches_bytes"] == rows * ((2 * 41 + 1) * 5120 * 2 + 5120 * 4)


def test_ask(sdrpn: Command, bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 24_000_000_000)
    message = refusal(sdrpn("ask", bundle, picture, "What does the sign say?"), 1)
    assert message.startswith(f"{bundle} as fused-fp16 needs about ")
    assert "this machine has 24.0 GB available: " in message
    assert message.endswith("are missing; export in int4 for a smaller one, or skip this check "
                            "(--no-memory-check)")  # fmt: skip


@pytest.mark.parametrize(
    ("memory_bytes", "told"),
    [
        (20_000_000_000, "and this machine has 20.0 GB available: "),
        (500_000_000_000, "and GeForce RTX 4090 has 24.0 GB: "),
    ],
    ids=["no room here", "no room there"],
)
def test_build(sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int, told: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    with_memory(monkeypatch, memory_bytes)
    monkeypatch.setattr(builder, "require_free_space", lambda *arguments, **options: None)
    message = refusal(sdrpn("build", bundle, "--target", "rtx-4090"), 1)
    assert told in message
    assert "use a lower precision" in message
    assert not list(bundle.rglob("*.engine*"))
