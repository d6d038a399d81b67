"""Reading bundles: whatever is missing, changed or malicious is refused in one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import MANIFEST_NAME, Manifest, file_digest, open_bundle
from sdrpn.errors import BadBundle, BadInput, SdrpnError
from sdrpn.host import listed_files

Json = Any


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_manifest(bundle: Path, edit: Callable[[Json], object]) -> None:
    value = json.loads((bundle / MANIFEST_NAME).read_text())
    edit(value)
    (bundle / MANIFEST_NAME).write_text(json.dumps(value))


def use_everything(path: Path) -> None:
    """What a reader of a bundle does."""
    opened = open_bundle(path)
    for name in [None, *opened.manifest.variants]:
        opened.verify(opened.variant(name).files)


def one_line(error: pytest.ExceptionInfo[SdrpnError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


class TestOpening:
    def test_a_good_bundle_is_read_and_verified(self, tiny_bundle: Path) -> None:
        use_everything(tiny_bundle)
        use_everything(Path(os.path.relpath(tiny_bundle)))

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"nowhere does not exist; expected a bundle folder, as `sdrpn export`"):
            open_bundle(tmp_path / "nowhere")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "photo.png").write_bytes(b"x")
        with pytest.raises(BadBundle, match=r"photo\.png is a file; expected a bundle folder"):
            open_bundle(tmp_path / "photo.png")

    def test_a_folder_without_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(BadBundle, match=r"has no manifest\.json; expected a bundle"):
            open_bundle(tmp_path)

    def test_a_manifest_that_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / MANIFEST_NAME).mkdir()
        with pytest.raises(BadBundle, match=r"manifest\.json cannot be read \(.*\); export the bundle again"):
            open_bundle(tmp_path)

    @pytest.mark.parametrize("call", ["exists", "stat"])
    def test_an_unreadable_folder(self, copy: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        original = getattr(Path, call)

        # Root may read everything, so that modes would prove nothing here.
        def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path.is_relative_to(copy):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(Path, call, refuse)
        with pytest.raises(BadBundle, match="cannot be read: permission denied; check the folder's owner and mode"):
            open_bundle(copy)

    @pytest.mark.parametrize("text", ["", "{", "\x00\x01", '{"format_version": 1', "[" * 200_000])
    def test_broken_json(self, copy: Path, text: str) -> None:
        (copy / MANIFEST_NAME).write_text(text)
        with pytest.raises(BadBundle, match=r"manifest\.json cannot be read \(.*\); export the bundle again") as error:
            open_bundle(copy)
        one_line(error)

    def test_a_manifest_that_is_not_utf8(self, copy: Path) -> None:
        (copy / MANIFEST_NAME).write_bytes(b'{"format_version": "\xff"}')
        with pytest.raises(BadBundle, match="cannot be read"):
            open_bundle(copy)

    @pytest.mark.parametrize("text", ["[]", "1", "null", '"format_version"', "{}"])
    def test_json_that_is_no_manifest(self, copy: Path, text: str) -> None:
        (copy / MANIFEST_NAME).write_text(text)
        with pytest.raises(BadBundle, match="is not a bundle manifest; export the bundle again"):
            open_bundle(copy)

    @pytest.mark.parametrize("version", [0, 1, 3, "2", None])
    def test_another_format_version(self, copy: Path, version: object) -> None:
        edit_manifest(copy, lambda value: value.update(format_version=version))
        again = r"rm -r \S*bundle && sdrpn export CHECKPOINT --out \S*bundle --dialect fused --precision fp32"
        with pytest.raises(
            BadBundle, match=rf"format version .*, this release reads 2; export it again: {again}, or install"
        ) as error:
            open_bundle(copy)
        one_line(error)

    @pytest.mark.parametrize("variants", [None, [], {}, {"x": 1}, {3: 1}])
    def test_another_format_version_with_variants_of_another_kind(self, copy: Path, variants: object) -> None:
        edit_manifest(copy, lambda value: value.update(format_version=1, variants=variants))
        with pytest.raises(BadBundle, match=r"reads 2; export it again: rm -r \S+ && sdrpn export CHECKPOINT") as error:
            open_bundle(copy)
        one_line(error)

    @pytest.mark.parametrize(
        ("tensor", "entry", "value", "message"),
        [
            ("tap", "role", "logits", 'input tap has the role "logits"; expected tap'),
            ("tap", "role", "", 'input tap has the role ""; expected tap'),
            (
                "tap",
                "role",
                "taps",
                'role of "tap" is "taps"; expected one of pixels, look, image_embeds, deepstack, hidden',
            ),
            ("score_key_cache_out", "of", "tap", 'is the cache of "tap"; expected that of score_key_cache'),
            ("score_key_cache", "of", "tap", 'is the cache of "tap"; expected that of no other'),
        ],
    )
    def test_a_wrong_role(self, copy: Path, tensor: str, entry: str, value: str, message: str) -> None:
        def edit(manifest: dict[str, Any]) -> None:
            graph = manifest["variants"]["fused-fp32"]["graphs"]["rpn"]
            for info in (*graph["inputs"], *graph["outputs"]):
                if info["name"] == tensor:
                    info[entry] = value

        edit_manifest(copy, edit)
        with pytest.raises(BadBundle, match=message) as error:
            open_bundle(copy)
        one_line(error)

    @pytest.mark.parametrize(
        "entry", ["spec", "max_context", "variants", "files", "tokenizer", "source", "tools", "rotary"]
    )
    def test_a_missing_entry(self, copy: Path, entry: str) -> None:
        edit_manifest(copy, lambda value: value.pop(entry))
        with pytest.raises(BadBundle, match=f"cannot be understood .*{entry}.*; export the bundle again") as error:
            open_bundle(copy)
        one_line(error)

    def test_no_variant(self, copy: Path) -> None:
        edit_manifest(copy, lambda value: value["variants"].clear())
        with pytest.raises(BadBundle, match="lists no variant"):
            open_bundle(copy)

    @pytest.mark.parametrize("graph", ["vision", "trunk", "rpn", "tail"])
    def test_a_variant_without_one_of_its_graphs(self, copy: Path, graph: str) -> None:
        edit_manifest(copy, lambda value: value["variants"]["fused-fp32"]["graphs"].pop(graph))
        with pytest.raises(BadBundle, match=rf"variant 'fused-fp32' has no graph '{graph}'; export the bundle again"):
            open_bundle(copy)


class TestFiles:
    @pytest.mark.parametrize("name", ["../x", "weights/../../x", "/etc/passwd", "..", "", ".", "a\\..\\b", "a\nb"])
    def test_a_path_that_leaves_the_bundle(self, copy: Path, name: str) -> None:
        edit_manifest(copy, lambda value: value["files"].update({name: {"size_bytes": 1, "sha256": "0" * 64}}))
        with pytest.raises(BadBundle, match="which leaves the bundle; expected a path inside it"):
            open_bundle(copy)

    def test_a_link_that_leaves_the_bundle(self, copy: Path, tmp_path: Path) -> None:
        inside, outside = copy / "trunk.fused-fp32.onnx", tmp_path / "elsewhere.onnx"
        inside.rename(outside)
        inside.symlink_to(outside)
        with pytest.raises(BadBundle, match=r"trunk\.fused-fp32\.onnx is a link that leaves"):
            use_everything(copy)

    def test_a_linked_folder_that_leaves_the_bundle(self, copy: Path, tmp_path: Path) -> None:
        (copy / "weights").rename(tmp_path / "elsewhere")
        (copy / "weights").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BadBundle, match="is a link that leaves"):
            use_everything(copy)

    def test_a_link_inside_the_bundle_and_one_to_the_bundle_are_fine(self, copy: Path, tmp_path: Path) -> None:
        (copy / "trunk.fused-fp32.onnx").rename(copy / "moved")
        (copy / "trunk.fused-fp32.onnx").symlink_to("moved")
        (tmp_path / "alias").symlink_to(copy)
        use_everything(tmp_path / "alias")

    @pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
    @pytest.mark.parametrize("name", [MANIFEST_NAME, "trunk.fused-fp32.onnx", "weights/trunk.fp32.bin"])
    def test_what_is_no_file_is_never_waited_for(
        self, copy: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = copy / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            monkeypatch.chdir(path.parent)  # names of sockets are short
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        told = "is a link that leaves" if kind == "device" else f"cannot be read .it is a {kind}, not a regular file"
        with pytest.raises(BadBundle, match=told) as error:
            use_everything(copy)
        one_line(error)

    def test_a_device_is_no_file_wherever_links_may_lead(self, copy: Path) -> None:
        (copy / MANIFEST_NAME).unlink()
        (copy / MANIFEST_NAME).symlink_to("/dev/zero")
        with pytest.raises(BadBundle, match="it is a device, not a regular file"):
            open_bundle(copy, allow_links=True)

    def test_a_huge_manifest_is_not_read(self, copy: Path) -> None:
        os.truncate(copy / MANIFEST_NAME, 2**40)  # takes no space: a hole
        with pytest.raises(BadBundle, match=r"it has 1,099,511,627,776 bytes; expected at most 4,194,304"):
            open_bundle(copy)

    def test_a_huge_file_is_refused_before_it_is_read(self, copy: Path) -> None:
        os.truncate(
            copy / "tokenizer.json" if (copy / "tokenizer.json").exists() else copy / "weights/trunk.fp32.bin", 2**40
        )
        with pytest.raises(BadBundle, match=r"has 1099511627776 bytes, the manifest says \d+"):
            use_everything(copy)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("trunk.fused-fp32.onnx", r"has 1099511627776 bytes; expected at most 268435456: weights lie in files of"),
            ("weights/trunk.fp32.bin", r"has \d+ bytes; such a model has less than \d+ in float32; export"),
        ],
    )
    def test_a_huge_file_whose_size_is_listed(self, copy: Path, name: str, message: str) -> None:
        os.truncate(copy / name, 2**40)
        edit_manifest(copy, lambda value: value["files"][name].update(size_bytes=2**40))
        with pytest.raises(BadBundle, match=message):
            open_bundle(copy)

    def test_a_loop_of_links(self, copy: Path) -> None:
        path = copy / "trunk.fused-fp32.onnx"
        path.unlink()
        path.symlink_to(path)
        with pytest.raises(BadBundle, match=r"cannot be read|is missing"):
            use_everything(copy)

    def test_a_missing_file(self, copy: Path) -> None:
        (copy / "weights" / "tail.fp32.bin").unlink()
        with pytest.raises(BadBundle, match=r"tail\.fp32\.bin is missing; export the bundle again"):
            use_everything(copy)

    def test_a_file_that_the_manifest_does_not_list(self, copy: Path) -> None:
        with pytest.raises(BadBundle, match=r'names "other\.bin" but does not list it'):
            open_bundle(copy).file("other.bin")

    def test_a_file_that_cannot_be_read(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *args: Any) -> str:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(listed_files, "file_digest", refuse)
        with pytest.raises(BadBundle, match=r"onnx cannot be read: permission denied; check the folder's owner"):
            use_everything(copy)

    def test_a_disk_that_fails(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: Path, *args: Any) -> str:
            raise OSError(5, "Input/output error", str(path))

        monkeypatch.setattr(listed_files, "file_digest", fail)
        with pytest.raises(BadBundle, match=r"cannot be read \(Input/output error\); export"):
            use_everything(copy)

    def test_another_size(self, copy: Path) -> None:
        with (copy / "weights" / "trunk.fp32.bin").open("ab") as stream:
            stream.write(b"\0")
        opened = open_bundle(copy)
        with pytest.raises(BadBundle, match=r"trunk\.fp32\.bin has \d+ bytes, the manifest says \d+; export"):
            opened.verify(opened.variant().files, large=False)

    def test_a_changed_byte(self, copy: Path) -> None:
        change_a_byte(copy / "weights" / "trunk.fp32.bin")
        message = r"trunk\.fp32\.bin was changed: its SHA-256 is \w{12}\.\.\., the manifest says \w{12}\.\.\.; export"
        with pytest.raises(BadBundle, match=message):
            use_everything(copy)

    def test_without_large_files_only_their_size_is_compared(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What --no-verify asks for."""
        opened = open_bundle(copy)
        large = "weights/trunk.fp32.bin"
        monkeypatch.setattr(listed_files, "SMALL_FILE_BYTES", opened.manifest.files[large].size_bytes - 1)
        change_a_byte(copy / large)
        opened.verify(opened.variant().files, large=False)
        with pytest.raises(BadBundle, match="was changed"):
            opened.verify(opened.variant().files, large=True)
        change_a_byte(copy / "weights" / "embed.fp32.bin")  # a small one
        with pytest.raises(BadBundle, match=r"embed\.fp32\.bin was changed"):
            opened.verify(opened.variant().files, large=False)

    def test_progress_is_told_every_byte(self, tiny_bundle: Path) -> None:
        opened, pieces = open_bundle(tiny_bundle), list[int]()
        names = opened.variant().files
        opened.verify(names, advance=pieces.append)
        assert sum(pieces) == sum(opened.manifest.files[name].size_bytes for name in names)

    def test_a_digest_of_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert file_digest(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestVariants:
    def test_a_plain_cpu_gets_fused_fp32(self, tiny_bundle: Path) -> None:
        assert open_bundle(tiny_bundle).variant().name == "fused-fp32"

    def test_by_name(self, tiny_bundle: Path) -> None:
        variant = open_bundle(tiny_bundle).variant("primitive-fp32")
        assert (variant.dialect, variant.precision, variant.opset) == ("primitive", "fp32", 20)

    def test_an_unknown_one(self, tiny_bundle: Path) -> None:
        message = r"has no variant 'int4'; it has fused-fp32, primitive-fp32\. Add one: sdrpn export CHECKPOINT --out"
        with pytest.raises(BadInput, match=message) as error:
            open_bundle(tiny_bundle).variant("int4")
        one_line(error)

    def test_the_better_variant_is_chosen_whatever_the_order(self, tiny_bundle: Path) -> None:
        opened = open_bundle(tiny_bundle)
        backwards = dict(reversed(list(opened.manifest.variants.items())))
        object.__setattr__(opened.manifest, "variants", backwards)
        assert opened.variant().name == "fused-fp32"


def test_a_manifest_survives_the_round_trip(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert Manifest.from_json(json.loads(manifest.to_text())) == manifest
    assert manifest.to_text() == (tiny_bundle / MANIFEST_NAME).read_text()
