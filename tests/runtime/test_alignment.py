"""A model whose rows are not multiples of 256 bytes, which TensorRT wants every tensor to begin at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import Answer, EngineOptions, Session
from tests.runtime.asking import BEFORE, OTHER, ask, no_box, require_same
from tests.runtime.gpu import fake_gpu


@pytest.fixture(scope="module")
def narrow_bundle(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 160 floats: 640 bytes."""
    folder = tmp_path_factory.mktemp("narrow")
    llm = dataclasses.replace(tiny_spec.llm, width=160)
    write_random_checkpoint(folder / "checkpoint", dataclasses.replace(tiny_spec, llm=llm))
    for dialect in ("fused", "primitive"):
        export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions(dialect=dialect))
    return folder / "bundle"


def conversation(session: Session) -> list[Answer]:
    """Behind a prefix of 19 rows, so that what follows begins at an odd multiple of 640 bytes."""
    before = BEFORE[1:]
    return [ask(session, before=before), ask(session, OTHER, before=before), ask(session, decide=no_box, before=before)]


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_the_same_answers(narrow_bundle: Path, tmp_path: Path, variant: str, flavour: str) -> None:
    gpu = fake_gpu(narrow_bundle, tmp_path, variant=variant, flavour=flavour)
    with Session.open(narrow_bundle, backend="onnxruntime", variant=variant, threads=1) as plain:
        expected = conversation(plain)
    for cuda_graph in (True, False):
        with gpu.session(EngineOptions(cuda_graph=cuda_graph)) as session:
            require_same(conversation(session), expected)
    assert all(address % 256 == 0 for run in gpu.trt.executions for address in run.addresses.values())
    assert gpu.cuda.violations == []
