"""Export and verification as calls: what they return, what they refuse, and that nothing is printed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

import sdrpn
from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.tokenizer import find_tokenizer, tokenizer_of
from sdrpn.errors import BadCheckpoint, BadInput, RunFailed
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.export import ExportRequest, export
from sdrpn.workflows.verify import VerifyRequest
from tests.cli.test_verify_exact import negate_first_weight, weight_file
from tests.damage import copied
from tests.workflows.recorded_progress import RecordedProgress


class TestExport:
    def test_a_second_variant(self, text_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        progress = RecordedProgress()
        sdrpn.export_bundle(str(text_checkpoint), str(tmp_path / "bundle"))
        result = sdrpn.export_bundle(text_checkpoint, tmp_path / "bundle", precision="int4", progress=progress)
        assert result.variants == ("fused-int4-cpu", "fused-int4")
        assert set(result.manifest.variants) == {"fused-fp32", *result.variants}
        files = {file for name in result.variants for file in result.manifest.variants[name].files}
        assert result.size_bytes == sum((tmp_path / "bundle" / file).stat().st_size for file in files)
        done, total = progress.ends["export"]
        assert done == total
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("options", "message", "named"),
        [
            ({"block": 16}, "block is for the precisions int8 and int4; got fp32: leave it out", ("block",)),
            ({"precision": "fp8", "method": "hqq"}, "method is for the precisions int8 and int4; got fp8", ("method",)),
            ({"precision": "fp7"}, "fp7", ()),
        ],
    )
    def test_what_does_not_go_together(
        self, tmp_path: Path, options: dict[str, Any], message: str, named: tuple[str, ...]
    ) -> None:
        with pytest.raises(BadInput, match=message) as caught:
            ExportRequest(CheckpointParts(tmp_path), tmp_path / "bundle", **options)
        assert caught.value.options == named

    def test_nvfp4_without_questions(self, text_checkpoint: Path, tmp_path: Path) -> None:
        request = ExportRequest(CheckpointParts(text_checkpoint), tmp_path / "bundle", "nvfp4")
        with pytest.raises(BadInput, match="precision nvfp4 needs a calibration"):
            export(request)
        assert not (tmp_path / "bundle").exists()


class TestVerify:
    def test_exactly(self, tiny_bundle: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
        progress = RecordedProgress()
        found = sdrpn.verify_bundle(tiny_bundle, tiny_checkpoint, variant="fused-fp32", exact=True, progress=progress)
        assert found.ok
        assert (found.gates, {check.variant for check in found.checks}) == ({}, {"all", "fused-fp32"})
        found.require_ok()
        assert progress.ends["verify"][0] == progress.ends["verify"][1]
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("exact", [True, False])
    def test_a_changed_weight(self, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, exact: bool) -> None:
        bundle = copied(tiny_bundle, tmp_path)
        negate_first_weight(bundle, weight_file(bundle, "rpn"))
        found = sdrpn.verify_bundle(bundle, tiny_checkpoint, variant="fused-fp32", exact=exact)
        assert not found.ok
        with pytest.raises(RunFailed, match=r"failed, first fused-fp32 rpn, \w+"):
            found.require_ok()

    @pytest.mark.parametrize("options", [{"exact": True}, {"variant": "fused-fp32"}])
    def test_a_target_has_its_own_variant_and_gates(self, tmp_path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(BadInput, match="all engines of a target are compared with gates"):
            VerifyRequest(tmp_path, target="rtx-4090", **options)


class TestTokenizer:
    def test_no_file_is_written_for_it(self, text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object, **options: object) -> None:
            raise AssertionError("a temporary file")

        for name in ("TemporaryDirectory", "NamedTemporaryFile", "mkdtemp", "mkstemp"):
            monkeypatch.setattr(tempfile, name, refuse)
        with open_checkpoint(text_checkpoint) as source:
            assert tokenizer_of(source).encode("sign").ids

    def test_a_checkpoint_without_one(self, tiny_checkpoint: Path) -> None:
        with open_checkpoint(tiny_checkpoint) as source:
            assert find_tokenizer(source) is None
            with pytest.raises(BadCheckpoint, match="has no tokenizer; put its tokenizer"):
                tokenizer_of(source)
