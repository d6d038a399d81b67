"""Servers and sessions take releases, refuse those that are not signed, and go back to the one before."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadBundle, BadInput
from sdrpn.release.store import ReleaseStore
from sdrpn.runtime import Session
from sdrpn.workflows.release_install import InstallRequest, install_release, list_releases
from sdrpn.workflows.release_pack import PackRequest, pack_release, sign_release
from sdrpn.workflows.release_service import begin_service, confirm_service, service_title
from tests.damage import flip_byte
from tests.release.small_releases import NOW, write_key_pair
from tests.workflows.release_server import serving

PICTURE = np.full((40, 60, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> tuple[Path, Path]:
    """Two versions of the shipped model, signed."""
    folder = tmp_path_factory.mktemp("archives")
    for version in (1, 2):
        pack_release(PackRequest("demo", folder / f"{version}", NOW, "street-codes", version))
        sign_release(folder / f"{version}", keys[0])
    return folder / "1", folder / "2"


@pytest.fixture
def store(archives: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "store"
    install_release(InstallRequest(archives[0], path, NOW, trial=False))
    return path


class TestSession:
    def test_a_store_a_release_and_its_bundle(self, store: Path, keys: tuple[Path, Path]) -> None:
        release = ReleaseStore(store).current
        assert release is not None
        answers = set()
        for path in (store, str(store), release.folder, release.bundle):
            with Session.open(path, backend="onnxruntime", require_signed=keys[1]) as session:
                answers.add(session.answer(PICTURE, "what ?", max_new_tokens=3).token_ids)
        with Session.open("demo", backend="onnxruntime") as session:
            answers.add(session.answer(PICTURE, "what ?", max_new_tokens=3).token_ids)
        assert len(answers) == 1

    def test_what_is_open_stays_when_another_is_installed(self, store: Path, archives: tuple[Path, Path]) -> None:
        bundle = open_bundle(store)
        install_release(InstallRequest(archives[1], store, NOW, trial=False))
        assert bundle.path.parent.name.startswith("1-")
        assert bundle.file("tokenizer.json").is_file()
        assert open_bundle(store).path.parent.name.startswith("2-")

    def test_another_key(self, store: Path, tmp_path: Path) -> None:
        _, other = write_key_pair(tmp_path)
        with pytest.raises(BadBundle, match="is signed by key"):
            Session.open(store, require_signed=[other])

    def test_a_bundle_that_is_no_release(self, tiny_bundle: Path, keys: tuple[Path, Path]) -> None:
        with pytest.raises(BadBundle, match="is not part of a release, and only signed ones are allowed here"):
            Session.open(tiny_bundle, require_signed=keys[1])
        with pytest.raises(BadBundle, match="is not part of a release"):
            Session.open("demo", require_signed=keys[1])

    @pytest.mark.parametrize(
        "name", ["bundle/manifest.json", "sbom.cdx.json", "release.json", "bundle/weights/embed.fp16.bin"]
    )
    def test_a_changed_file(self, store: Path, keys: tuple[Path, Path], name: str) -> None:
        changed = (store / "current" / name).resolve()
        changed.chmod(0o644)
        flip_byte(changed, -2)
        with pytest.raises(BadBundle):
            Session.open(store, require_signed=keys[1])

    def test_an_archive_is_installed_first(self, archives: tuple[Path, Path]) -> None:
        with pytest.raises(BadBundle, match="the archive of a release is installed first: `sdrpn release install`"):
            Session.open(archives[0])


class TestService:
    def test_a_start_counts_until_it_is_confirmed(self, store: Path, archives: tuple[Path, Path]) -> None:
        begin_service(store)
        confirm_service(open_bundle(store))
        install_release(InstallRequest(archives[1], store, NOW, trial=False))
        notes: list[str] = []
        for _ in range(3):
            begin_service(store, notes.append)
        assert [note.partition(" did")[0][:9] for note in notes] == ["release 2"]
        assert open_bundle(store).path.parent.name.startswith("1-")

    def test_others_are_left_alone(self, tiny_bundle: Path) -> None:
        before = sorted(tiny_bundle.iterdir())
        begin_service(tiny_bundle)
        confirm_service(open_bundle(tiny_bundle))
        assert sorted(tiny_bundle.iterdir()) == before

    def test_its_name(self, store: Path, tiny_bundle: Path) -> None:
        assert service_title(open_bundle(store)) == "street-codes"
        assert service_title(open_bundle(tiny_bundle)) == tiny_bundle.name


def test_the_server_takes_a_store_and_confirms_it(
    store: Path, archives: tuple[Path, Path], keys: tuple[Path, Path]
) -> None:
    assert list_releases(store, NOW)[0].state == "pending"
    with serving(store, "--require-signed", keys[1]) as url:
        assert list_releases(store, NOW)[0].result == "ready"
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as reply:
            assert json.load(reply)["data"][0]["id"] == "street-codes"
        install_release(InstallRequest(archives[1], store, NOW, trial=False))
        reload = urllib.request.Request(f"{url}/admin/reload", method="POST")
        with urllib.request.urlopen(reload, timeout=60) as reply:
            assert json.load(reply)["generation"] == 2
        assert [(row.version, row.state, row.result) for row in list_releases(store, NOW)] == [
            (2, "current", "ready"),
            (1, "previous", "ready"),
        ]


def test_the_server_refuses_another_key(store: Path, tmp_path: Path) -> None:
    _, other = write_key_pair(tmp_path)
    with pytest.raises(BadInput, match="the server ended"), serving(store, "--require-signed", other):
        pass
