"""Releases of a real bundle: packed, signed, installed, refused, gone back from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.host.machine import Gpu, Machine, read_machine
from sdrpn.release.archive import open_archive
from sdrpn.release.store import ReleaseStore
from sdrpn.workflows import release_install
from sdrpn.workflows.release_install import (
    InstallRequest,
    ServiceCheck,
    install_release,
    list_releases,
    roll_back_release,
)
from sdrpn.workflows.release_pack import PackRequest, pack_release, sign_release, verify_release
from sdrpn.workflows.release_trial import try_release
from tests.damage import copied, flip_byte
from tests.limits import ended_soon
from tests.release.small_releases import NOW, write_key_pair
from tests.runtime.engine_files import TARGET, write_engines
from tests.workflows.recorded_progress import RecordedProgress


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def archives(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, keys: tuple[Path, Path]
) -> tuple[Path, Path, Path]:
    """Versions 1, 2 (the same model) and 3 (other RPN), signed."""
    folder = tmp_path_factory.mktemp("archives")
    other = copied(tiny_bundle, folder)
    _change_rpn(other)
    made = []
    for version, bundle in enumerate((tiny_bundle, tiny_bundle, other), start=1):
        path = folder / f"{version}.sdrpn"
        pack_release(PackRequest(bundle, path, NOW, "tiny", version))
        sign_release(path, keys[0])
        made.append(path)
    return made[0], made[1], made[2]


def _change_rpn(bundle: Path) -> None:
    """Other bytes in the RPN's weights, and a manifest that says so."""
    manifest = open_bundle(bundle).manifest
    value = manifest.to_json()
    from sdrpn.host.listed_files import file_digest

    for name in value["files"]:
        if name.startswith("weights/rpn"):
            flip_byte(bundle / name, 0)
            value["files"][name]["sha256"] = file_digest(bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(value))


def request(archive: Path, store: Path, **changes: object) -> InstallRequest:
    given: dict[str, object] = {"trial": False, "now": NOW}
    return InstallRequest(archive, store, **(given | changes))  # type: ignore[arg-type]


def current(store: Path) -> int:
    found = ReleaseStore(store).current
    assert found is not None
    found.verify()
    return found.index.version


class TestPack:
    def test_contents_are_stored_once(self, archives: tuple[Path, Path, Path], tiny_bundle: Path) -> None:
        manifest = open_bundle(tiny_bundle).manifest
        with open_archive(archives[0]) as archive:
            stored = [found.sha256 for found in archive.objects()]
            assert len(stored) == len(set(stored)) == len(archive.index.sizes)
            of_bundle = {f"bundle/{name}" for name in (*manifest.files, "manifest.json")}
            assert set(archive.index.files) == of_bundle | {"sbom.cdx.json", "provenance.json"}

    def test_the_same_again(self, tiny_bundle: Path, tmp_path: Path) -> None:
        for name in ("1", "2"):
            pack_release(PackRequest(tiny_bundle, tmp_path / name, NOW, "tiny", 1))
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_progress_ends_with_everything(self, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        shown = RecordedProgress()
        with open_archive(archives[2]) as archive:
            whole = archive.index.size_bytes
        pack_release(PackRequest(archives[2], tmp_path / "d", NOW, against=archives[0]), progress=shown)
        assert shown.ends["write"][0] == shown.ends["write"][1] < whole
        verify_release(archives[2], progress=shown)
        done, total = shown.ends["verify"]
        assert (done, total) == (whole, archives[2].stat().st_size)
        for archive_path in (archives[0], tmp_path / "d"):
            install_release(request(archive_path, tmp_path / "store"), progress=shown)
            done, total = shown.ends["unpack"]
            assert done == total > 0

    def test_sbom_and_provenance(self, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        release = install_release(request(archives[0], tmp_path))
        sbom = json.loads((Path(release.folder) / "sbom.cdx.json").read_text())
        assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
        names = {component["name"] for component in sbom["components"]}
        assert {"numpy", "onnxruntime", "sdrpn", "bundle/manifest.json"} <= names
        provenance = json.loads((Path(release.folder) / "provenance.json").read_text())
        subjects = {entry["name"]: entry["digest"]["sha256"] for entry in provenance["subject"]}
        index = json.loads((Path(release.folder) / "release.json").read_text())
        assert {name: index["files"][name]["sha256"] for name in subjects} == subjects

    def test_engines_of_chosen_targets(self, tiny_bundle: Path, tmp_path: Path) -> None:
        bundle = open_bundle(copied(tiny_bundle, tmp_path))
        write_engines(bundle)
        write_engines(bundle, target="other")
        archive = tmp_path / "a.sdrpn"
        packed = pack_release(PackRequest(bundle.path, archive, NOW, "tiny", 1, targets=(TARGET,), graphs=False))
        assert packed.targets == (TARGET,)
        with open_archive(archive) as opened:
            names = set(opened.index.files)
            assert opened.index.needs[0].capabilities == ("SM86", "SM89")
        assert f"bundle/engines/{TARGET}/trunk.engine" in names
        assert not any("other" in name or name.endswith(".onnx") for name in names)
        with pytest.raises(
            BadInput, match=r"does not fit this machine \(rtx-4090: its engines need a GPU \(SM86 or SM89\)"
        ):
            install_release(request(archive, tmp_path / "store"))
        assert not (tmp_path / "store" / "current").exists()

    def test_what_cannot_be_packed(self, tiny_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="has no engines for target 'x'"):
            pack_release(PackRequest(tiny_bundle, tmp_path / "a", NOW, "tiny", 1, targets=("x",)))
        with pytest.raises(BadInput, match="needs a name and a version"):
            pack_release(PackRequest(tiny_bundle, tmp_path / "a", NOW))
        with pytest.raises(BadInput, match="expected small letters"):
            pack_release(PackRequest(tiny_bundle, tmp_path / "a", NOW, "Tiny One", 1))
        with pytest.raises(BadInput, match="without graphs needs engines"):
            PackRequest(tiny_bundle, tmp_path / "a", NOW, "tiny", 1, graphs=False)
        damaged = copied(tiny_bundle, tmp_path)
        flip_byte(next(damaged.glob("weights/*.bin")))
        with pytest.raises(BadBundle, match="was changed"):
            pack_release(PackRequest(damaged, tmp_path / "a", NOW, "tiny", 1))
        assert [path.name for path in tmp_path.iterdir()] == [damaged.name]


class TestVerify:
    def test_who_signed_it(self, archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path) -> None:
        assert verify_release(archives[0], [keys[1]]).trusted
        assert not verify_release(archives[0]).trusted
        _, other = write_key_pair(tmp_path)
        with pytest.raises(BadBundle, match="is signed by key"):
            verify_release(archives[0], [other])

    def test_nobody(self, tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
        pack_release(PackRequest(tiny_bundle, tmp_path / "a", NOW, "tiny", 1))
        assert verify_release(tmp_path / "a").key_id is None
        with pytest.raises(BadBundle, match="is not signed, and only signed releases are allowed here"):
            verify_release(tmp_path / "a", [keys[1]])

    def test_expired(self, archives: tuple[Path, Path, Path]) -> None:
        with pytest.raises(BadBundle, match="expired at 2028"):
            verify_release(archives[0], now=NOW + timedelta(days=365))
        verify_release(archives[0], now=NOW + timedelta(days=364))

    def test_an_installed_one(self, archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path) -> None:
        release = install_release(request(archives[0], tmp_path))
        assert verify_release(tmp_path, [keys[1]]).id == verify_release(Path(release.folder)).id == release.id
        damaged = next(Path(release.folder).glob("bundle/weights/*"))
        damaged.chmod(0o644)
        flip_byte(damaged)
        with pytest.raises(BadBundle, match=r"was changed: .*install the release again"):
            verify_release(tmp_path, [keys[1]])


class TestRefused:
    """Each in one line, and the old release goes on."""

    @pytest.fixture
    def store(self, archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "store"
        install_release(request(archives[1], path, keys=(keys[1],)))
        before = set((path / "releases").iterdir())
        yield path
        assert current(path) == 2
        assert set((path / "releases").iterdir()) == before

    def test_an_older_one(self, store: Path, archives: tuple[Path, Path, Path], keys: tuple[Path, Path]) -> None:
        with pytest.raises(BadBundle, match="has version 1; this device accepted 2 before"):
            install_release(request(archives[0], store, keys=(keys[1],)))

    def test_an_older_one_after_going_back(
        self, archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path
    ) -> None:
        store = tmp_path / "other"
        for archive in archives:
            install_release(request(archive, store, keys=(keys[1],)))
        roll_back_release(store, NOW)
        with pytest.raises(BadBundle, match="accepted 3 before"):
            install_release(request(archives[1], store, keys=(keys[1],)))
        install_release(request(archives[2], store, keys=(keys[1],)))
        assert current(store) == 3

    def test_one_changed_byte(
        self, store: Path, archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path
    ) -> None:
        changed = tmp_path / "changed"
        content = archives[2].read_bytes()
        for position in (0, 600, 9000, len(content) // 2, len(content) - 1):
            changed.write_bytes(content)
            flip_byte(changed, position)
            with pytest.raises(BadBundle):
                install_release(request(changed, store, keys=(keys[1],)))

    def test_a_wrong_key(self, store: Path, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        _, other = write_key_pair(tmp_path)
        with pytest.raises(BadBundle, match="is signed by key"):
            install_release(request(archives[2], store, keys=(other,)))

    def test_no_key_where_one_was_asked_for_before(self, store: Path, archives: tuple[Path, Path, Path]) -> None:
        with pytest.raises(BadInput, match=r"takes releases signed by .* only; name the key"):
            install_release(request(archives[2], store))

    def test_an_expired_one(self, store: Path, archives: tuple[Path, Path, Path], keys: tuple[Path, Path]) -> None:
        with pytest.raises(BadBundle, match="expired at"):
            install_release(request(archives[2], store, keys=(keys[1],), now=NOW + timedelta(days=400)))

    def test_a_full_disk(
        self,
        store: Path,
        archives: tuple[Path, Path, Path],
        keys: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr("sdrpn.host.atomic.shutil.disk_usage", lambda path: usage)
        with pytest.raises(RunFailed, match=r"its disk has 1\.0 kB free"):
            install_release(request(archives[2], store, keys=(keys[1],)))

    def test_a_disk_that_fills_up(
        self,
        store: Path,
        archives: tuple[Path, Path, Path],
        keys: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(release_install, "unpack", full)
        with pytest.raises(RunFailed, match="the disk is full"):
            install_release(request(archives[2], store, keys=(keys[1],)))

    def test_too_little_memory(
        self,
        store: Path,
        archives: tuple[Path, Path, Path],
        keys: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(release_install, "read_machine", lambda: machine(memory_bytes=1000))
        with pytest.raises(BadInput, match=r"cpu: it needs \S+ \S+ of memory, and here are 1.0 kB"):
            install_release(request(archives[2], store, keys=(keys[1],)))

    def test_another_target(self, store: Path, archives: tuple[Path, Path, Path], keys: tuple[Path, Path]) -> None:
        with pytest.raises(BadInput, match="has nothing for rtx-4090; it has cpu"):
            install_release(request(archives[2], store, keys=(keys[1],), target="rtx-4090"))

    def test_a_trial_that_fails(
        self,
        store: Path,
        archives: tuple[Path, Path, Path],
        keys: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("sdrpn.workflows.release_trial._CHILD", "import os; os.abort()")
        with pytest.raises(RunFailed, match="was not installed: its trial failed: its process ended with -6"):
            install_release(request(archives[2], store, keys=(keys[1],), trial=True))


def machine(**changes: object) -> Machine:
    import dataclasses

    return dataclasses.replace(read_machine(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "message"), [("8.7", "its engines need SM89, and Orin is SM87"), ("8.9", None), (None, None)]
)
def test_a_gpu_fits_or_not(capability: str | None, message: str | None) -> None:
    from sdrpn.release.index import Needs

    here = machine(gpus=(Gpu("Orin", 10**10, capability, None),))
    assert release_install._obstacle(Needs("t", 10, ("SM89",), "tensorrt-rtx"), here) == message


def test_the_trial_runs_the_model(tiny_bundle: Path) -> None:
    trial = try_release(tiny_bundle)
    assert (trial.state, trial.backend) == ("passed", "onnxruntime fused-fp32")
    assert {"numpy", "onnxruntime"} <= set(trial.libraries)
    missing = try_release(tiny_bundle / "none")
    assert missing.state.startswith("failed: ")
    assert "does not exist" in missing.state


def test_a_delta_of_a_new_rpn(archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Only what changed travels, and the signature of the whole release holds."""
    store, delta = tmp_path / "store", tmp_path / "delta"
    install_release(request(archives[0], store, keys=(keys[1],)))
    made = pack_release(PackRequest(archives[2], delta, NOW, against=store))
    with open_archive(archives[2]) as archive:
        rpn_bytes = sum(file.size_bytes for name, file in archive.index.files.items() if "weights/rpn" in name)
    assert made.size_bytes <= rpn_bytes + 1_000_000
    assert delta.stat().st_size == made.size_bytes < archives[2].stat().st_size / 2
    assert verify_release(delta, [keys[1]]).missing_bytes == made.missing_bytes
    install_release(request(delta, store, keys=(keys[1],)))
    assert current(store) == 3
    with pytest.raises(BadBundle, match="is a delta, and lacks"):
        install_release(request(delta, tmp_path / "empty", keys=(keys[1],)))
    assert not (tmp_path / "empty" / "current").exists()


@contextmanager
def service(is_ready: Callable[[], bool]) -> Iterator[str]:
    """The URL of something that is ready or not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if is_ready() else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/readyz"
    finally:
        server.shutdown()
        ended_soon(thread)
        server.server_close()


class TestService:
    def test_it_becomes_ready(self, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        notes: list[str] = []
        with service(lambda: True) as url:
            check = ServiceCheck("true", url, 5)
            found = install_release(request(archives[0], tmp_path, service=check), note=notes.append)
        assert (found.state, found.result, notes) == ("current", "ready", ["ran true"])

    def test_it_does_not(self, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        install_release(request(archives[0], tmp_path))
        with service(lambda: current(tmp_path) == 1) as url, pytest.raises(RunFailed) as failed:
            install_release(request(archives[1], tmp_path, service=ServiceCheck("true", url, 1)))
        assert "was not ready within 1 s; went back to 1-" in str(failed.value)
        assert current(tmp_path) == 1

    def test_its_restart_fails(self, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        install_release(request(archives[0], tmp_path))
        with pytest.raises(RunFailed, match=r"`false` failed with 1: it printed no error; went back to 1-"):
            install_release(request(archives[1], tmp_path, service=ServiceCheck("false")))
        assert current(tmp_path) == 1

    def test_it_went_back_by_itself(self, archives: tuple[Path, Path, Path], tmp_path: Path) -> None:
        """What a manager does that restarts a service over and over: the third start takes the release before."""
        install_release(request(archives[0], tmp_path))
        store = ReleaseStore(tmp_path)

        def restarted() -> bool:
            return store.starting().index.version == 1

        with (
            service(restarted) as url,
            pytest.raises(RunFailed, match="its service went back by itself; went back to 1-"),
        ):
            install_release(request(archives[1], tmp_path, service=ServiceCheck(None, url, 30)))
        assert current(tmp_path) == 1


def test_lists(archives: tuple[Path, Path, Path], keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a store of releases"):
        list_releases(tmp_path, NOW)
    for archive in archives:
        install_release(request(archive, tmp_path, keys=(keys[1],)))
    rows = list_releases(tmp_path, NOW)
    assert [(row.version, row.state, row.expired) for row in rows] == [(3, "pending", False), (2, "previous", False)]
    assert all(row.expired for row in list_releases(tmp_path, NOW + timedelta(days=365)))
