"""What is refused while a server answers under load: the old release goes on answering, every time."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from sdrpn.errors import BadBundle, BadInput, RunFailed, SdrpnError
from sdrpn.release.archive import Archive
from sdrpn.release.store import ReleaseStore
from sdrpn.tags import shipped_scene
from sdrpn.workflows import release_install
from sdrpn.workflows.release_install import InstallRequest, install_release
from sdrpn.workflows.release_pack import PackRequest, pack_release, sign_release
from tests.damage import flip_byte
from tests.release.small_releases import NOW, write_key_pair
from tests.runtime.server.serving import chat_body, scene_url
from tests.workflows.release_server import serving

MOST_S = 60.0


@dataclass
class Device:
    """A store whose release 2 answers, archives of releases 1 to 3, keys; and clients that ask all the time."""

    store: Path
    folder: Path
    private: Path
    public: Path
    url: str
    answers: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def archive(self, version: int) -> Path:
        return self.folder / f"{version}.sdrpn"

    def request(self, archive: Path, **changes: object) -> InstallRequest:
        given: dict[str, object] = {"trial": False, "keys": (self.public,), "now": NOW}
        return InstallRequest(archive, self.store, **(given | changes))  # type: ignore[arg-type]

    def ask(self) -> None:
        body = {**chat_body(scene_url()), "model": "street-codes"}
        with httpx.Client(timeout=60) as client:
            while not self.ended.is_set():
                reply = client.post(f"{self.url}/v1/chat/completions", json=body)
                text = reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text
                self.answers.append(text)

    def refuses(self, install: Callable[[], object], kind: type[SdrpnError], message: str) -> None:
        """An install is refused in one line, and answers come before, meanwhile and after."""
        before = self.tree()
        with pytest.raises(kind, match=message) as refused:
            install()
        assert "\n" not in str(refused.value)
        assert self.tree() == before
        current = ReleaseStore(self.store).current
        assert current is not None
        assert current.index.version == 2
        count, deadline = len(self.answers), time.monotonic() + MOST_S
        while len(self.answers) < count + 3:  # three that came later
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert set(self.answers) == {shipped_scene().expected}

    def tree(self) -> set[str]:
        """Every name in the store but those of locks."""
        return {
            path.relative_to(self.store).as_posix() for path in self.store.rglob("*") if not path.name.endswith(".lock")
        }


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("device")
    private, public = write_key_pair(folder)
    for version in (1, 2, 3):
        pack_release(PackRequest("demo", folder / f"{version}.sdrpn", NOW, "street-codes", version))
        sign_release(folder / f"{version}.sdrpn", private)
    store = folder / "store"
    for version in (1, 2):
        install_release(InstallRequest(folder / f"{version}.sdrpn", store, NOW, (public,), trial=False))
    with serving(store, "--require-signed", public) as url:
        device = Device(store, folder, private, public, url)
        clients = [threading.Thread(target=device.ask) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            yield device
        finally:
            device.ended.set()
            for client in clients:
                client.join(MOST_S)


def test_a_byte_that_was_changed(device: Device, tmp_path: Path) -> None:
    changed, size = tmp_path / "changed.sdrpn", device.archive(3).stat().st_size
    source = random.Random(4)
    for place in (0, 700, size // 2, size - 1, *(source.randrange(size) for _ in range(4))):
        changed.write_bytes(device.archive(3).read_bytes())
        flip_byte(changed, place)
        device.refuses(lambda: install_release(device.request(changed)), BadBundle, ".")


def test_another_key(device: Device, tmp_path: Path) -> None:
    other, public = write_key_pair(tmp_path)
    signed = tmp_path / "other.sdrpn"
    sign_release(device.archive(3), other, out=signed)
    device.refuses(lambda: install_release(device.request(signed)), BadBundle, "is signed by key")
    device.refuses(
        lambda: install_release(device.request(device.archive(3), keys=(public,))), BadBundle, "is signed by"
    )
    device.refuses(lambda: install_release(device.request(device.archive(3), keys=())), BadInput, "releases signed by")


def test_an_older_release(device: Device) -> None:
    device.refuses(lambda: install_release(device.request(device.archive(1))), BadBundle, "older|below")


def test_a_target_that_does_not_fit(device: Device) -> None:
    request = device.request(device.archive(3), target="l4")
    device.refuses(lambda: install_release(request), BadInput, "has nothing for l4; it has cpu")


def test_a_full_disk(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found before anything is written; and, where somebody else fills it meanwhile, in the middle."""
    other = tmp_path / "other.sdrpn"  # of contents that are not there, so that they are written
    pack_release(PackRequest("demo", other, NOW, "street-codes", 4, expires_in_days=9))
    sign_release(other, device.private)

    class Full:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Full)
        device.refuses(lambda: install_release(device.request(other)), RunFailed, "1.0 kB free")

    def fills(archive: Archive, folder: Path, *rest: object) -> None:
        (folder / "bundle").mkdir()
        (folder / "bundle" / "half").write_bytes(bytes(100_000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(release_install, "unpack", fills)
        device.refuses(lambda: install_release(device.request(other)), RunFailed, "the disk is full")
