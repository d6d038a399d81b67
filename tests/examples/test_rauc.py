"""The slot of examples/rauc: its hook installs releases, and the files say the same things."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sdrpn.release.store import ReleaseStore
from sdrpn.workflows.release_pack import PackRequest, pack_release, sign_release
from tests.release.small_releases import NOW, write_key_pair
from tests.sources import ROOT

FOLDER = ROOT / "examples" / "rauc"


def read(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(delimiters=("=",))
    found.read(FOLDER / name)
    return found


def test_the_manifest_fits_the_device() -> None:
    system, manifest = read("system.conf"), read("manifest.raucm")
    assert manifest["update"]["compatible"] == system["system"]["compatible"]
    slots = {section.split(".")[1] for section in system.sections() if section.startswith("slot.")}
    images = {section.split(".")[1] for section in manifest.sections() if section.startswith("image.")}
    assert images <= slots
    assert manifest["image.model"]["hooks"] == "install"
    assert system["slot.model.0"]["allow-mounted"] == "true"
    assert (FOLDER / manifest["hooks"]["filename"]).is_file()
    assert os.access(FOLDER / "hook.sh", os.X_OK)


class Ready(BaseHTTPRequestHandler):
    """A service that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class TestHook:
    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        """What RAUC sets, and a release for it."""
        private, public = write_key_pair(tmp_path)
        pack_release(PackRequest("demo", tmp_path / "model.img", NOW, "demo", 1))
        sign_release(tmp_path / "model.img", private)
        program = tmp_path / "sdrpn"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sdrpn "$@"\n')
        program.chmod(0o755)
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAUC_SLOT_CLASS": "model",
            "RAUC_IMAGE_NAME": str(tmp_path / "model.img"),
            "SDRPN": str(program),
            "SDRPN_STORE": str(tmp_path / "store"),
            "SDRPN_KEY": str(public),
            "SDRPN_RESTART": "true",
        }

    @staticmethod
    def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(FOLDER / "hook.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def test_it_installs(self, environment: dict[str, str]) -> None:
        with HTTPServer(("127.0.0.1", 0), Ready) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}/readyz"
            done = self.run(environment | {"SDRPN_READY_URL": url}, "slot-install")
            server.shutdown()
        assert done.returncode == 0, done.stderr
        current = ReleaseStore(Path(environment["SDRPN_STORE"])).current
        assert current is not None
        assert current.index.version == 1

    def test_a_wrong_setting_changes_nothing(self, environment: dict[str, str]) -> None:
        refused = self.run(environment | {"SDRPN_READY_URL": "no URL"}, "slot-install")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert not Path(environment["SDRPN_STORE"]).exists()

    def test_other_slots(self, environment: dict[str, str]) -> None:
        environment["RAUC_SLOT_CLASS"] = "rootfs"
        assert self.run(environment, "slot-install").returncode == 1
        assert not Path(environment["SDRPN_STORE"]).exists()


def test_rauc_makes_a_bundle_of_it(tmp_path: Path) -> None:
    """Where RAUC is installed (apt install rauc)."""
    rauc, openssl = shutil.which("rauc"), shutil.which("openssl")
    if rauc is None or openssl is None or shutil.which("mksquashfs") is None:
        pytest.skip("rauc, openssl or squashfs-tools is not installed")
    content = tmp_path / "content"
    shutil.copytree(FOLDER, content, ignore=shutil.ignore_patterns("system.conf"))
    (content / "model.img").write_bytes(os.urandom(50_000))  # what does not shrink
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
    subprocess.run([*make, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    command = [rauc, "bundle", "--cert=cert.pem", "--key=key.pem", "content", "model.raucb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [rauc, "info", "--keyring=cert.pem", "model.raucb"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "street-camera" in shown.stdout, shown.stderr
    assert "install" in shown.stdout
