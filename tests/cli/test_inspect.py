"""`sdrpn inspect`: what it says about a bundle, and that it says it of whole bundles only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import Manifest, open_bundle
from sdrpn.host import listed_files
from tests.cli.command import Command, refusal
from tests.damage import copied, flip_byte


class TestOutput:
    def test_the_model_for_people(self, sdrpn: Command, text_bundle: Path) -> None:
        found = sdrpn("inspect", text_bundle)
        assert (found.code, found.err) == (0, "")
        for line in (
            r"image +56x56 px, 4x4 tokens",
            r"vision tower +2 of 3 layers, width 32",
            r"LLM +4 layers, width 64, 4 heads \(2 for keys and values\)",
            r"tap +after layer 2: trunk 2, tail 2 layers",
            r"RPN +2 layers, loss bce",
            r"context +512 of 512 positions",
            r"vocabulary +288 tokens, tokenizer tokenizer\.json",
            r"from +checkpoint \(sdrpn\)",
            r"engines for +none",
            r"fused-fp32: opset 24, 1\.\d MB with the token embedding",
            r"primitive-fp32: opset 20, 1\.\d MB with the token embedding",
            r"trunk +\d+\.\d kB +in +inputs_embeds +float32 +\(batch, sequence, 64\)",
            r" +out +key_cache\.0_out and 3 more +float32 +\(batch, 2, cache_length, 16\)",
        ):
            assert re.search(f"^{line}$", found.out, re.MULTILINE), line

    @pytest.mark.parametrize(
        ("bundle", "line"),
        [
            ("plain_bundle", "RPN +none: the plain model only"),
            ("tiny_bundle", "vocabulary +96 tokens, tokenizer none: .*"),
        ],
    )
    def test_what_a_bundle_lacks(self, sdrpn: Command, bundle: str, line: str, request: pytest.FixtureRequest) -> None:
        found = sdrpn("inspect", request.getfixturevalue(bundle))
        assert re.search(f"^{line}$", found.out, re.MULTILINE)

    def test_json_is_the_manifest(self, sdrpn: Command, text_bundle: Path) -> None:
        manifest = Manifest.from_json(sdrpn("inspect", text_bundle, "--json").json())
        assert manifest == open_bundle(text_bundle).manifest

    def test_every_line_fits_a_pipe(self, sdrpn: Command, text_bundle: Path) -> None:
        assert not [line for line in sdrpn("inspect", text_bundle).out.splitlines() if line != line.rstrip()]


class TestVerify:
    def test_large_files_are_read_only_on_request(
        self, sdrpn: Command, text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changed = copied(text_bundle, tmp_path)
        flip_byte(changed / "weights" / "trunk.fp32.bin")
        monkeypatch.setattr(listed_files, "SMALL_FILE_BYTES", 10_000)
        assert sdrpn("inspect", changed).code == 0
        assert "trunk.fp32.bin was changed" in refusal(sdrpn("inspect", changed, "--verify"))

    def test_files_of_every_variant_count(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path
    ) -> None:
        changed = copied(text_bundle, tmp_path)
        flip_byte(changed / "rpn.primitive-fp32.onnx")
        assert "rpn.primitive-fp32.onnx was changed" in refusal(sdrpn("inspect", changed))
        ask = ("ask", changed, picture, "What?", "--max-new-tokens", 1)
        assert sdrpn(*ask).code == 0  # the default variant is whole
        assert "rpn.primitive-fp32.onnx was changed" in refusal(sdrpn(*ask, "--variant", "primitive-fp32"))
