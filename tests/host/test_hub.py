"""Models by their names on the hub: found in a cache as huggingface_hub keeps it, and downloaded from a server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
from huggingface_hub import constants

from sdrpn.bundle.bundle import open_bundle
from sdrpn.checkpoint import open_checkpoint
from sdrpn.cli.main import main
from sdrpn.errors import BadBundle, BadInput, MissingDependency
from sdrpn.host import hub
from sdrpn.host.hub import hub_folder, model_folder

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a working folder where nothing is."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "hub"


def keep(cache: Path, name: str, folder: Path) -> Path:
    """A copy of `folder` in the cache, every file a link to a blob."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, repository / "blobs" / str(number))
        link.symlink_to(repository / "blobs" / str(number))
    return snapshot


def test_a_bundle_and_a_checkpoint_in_the_cache(cache: Path, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    bundle, checkpoint = keep(cache, "me/bundle", tiny_bundle), keep(cache, "me/ck", tiny_checkpoint)
    assert open_bundle("me/bundle").path == bundle
    assert open_bundle(f"me/bundle@{REVISION}").path == bundle
    with open_checkpoint("me/ck") as opened:
        assert opened.path == checkpoint
        assert len(opened.read("llm.norm.weight"))


def test_verbs_take_names(cache: Path, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    keep(cache, "me/bundle", tiny_bundle)
    keep(cache, "me/ck", tiny_checkpoint)
    assert main(["inspect", "me/bundle"]) == 0
    assert main(["export", "me/ck", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_folder_here_comes_first(cache: Path, tiny_bundle: Path) -> None:
    keep(cache, "me/bundle", tiny_bundle)
    Path("me/bundle").mkdir(parents=True)
    with pytest.raises(BadBundle, match=r"me/bundle has no manifest\.json"):
        open_bundle("me/bundle")


def test_a_path_is_a_path(cache: Path, tiny_bundle: Path) -> None:
    keep(cache, "me/bundle", tiny_bundle)
    with pytest.raises(BadInput, match="me/bundle does not exist"):
        open_bundle(Path("me/bundle"))
    for text in ("bundle", "./me/bundle", "a/b/c", "/me/bundle", "../bundle", "me/", "me/bundle@", "me/b c", "-a/b"):
        assert model_folder(text) == Path(text)


def test_what_is_not_in_the_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match=r"me/other is neither a folder here nor in .*; download it"):
        open_bundle("me/other")
    assert main(["inspect", "me/other"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_snapshot_without_anything_to_read(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("a model")
    keep(cache, "me/empty", tmp_path / "docs")
    with pytest.raises(BadInput, match="me/empty is neither a folder here nor in"):
        model_folder("me/empty")


def test_without_the_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert model_folder("me/bundle") == Path("me/bundle")
    with pytest.raises(BadInput, match="me/bundle does not exist"):
        open_bundle("me/bundle")
    with pytest.raises(MissingDependency, match=r"me/bundle is not a folder here, .*pip install 'sdrpn\[hub\]'"):
        model_folder("me/bundle", download=True)


def test_what_is_no_name() -> None:
    with pytest.raises(BadInput, match="a b is not a name on the hub; expected ORGANISATION/MODEL"):
        hub_folder("a b")
    assert hub._library() is huggingface_hub


def test_weights_on_another_disk_by_option(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (copy / "weights").rename(tmp_path / "disk")
    (copy / "weights").symlink_to(tmp_path / "disk")
    assert main(["inspect", str(copy)]) == 2
    assert main(["inspect", str(copy), "--allow-links", str(tmp_path / "disk")]) == 0
    assert main(["inspect", str(copy)]) == 2  # it went for that command only


# A server of the hub ------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Two answers of the hub's: what a repository holds, and its files."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/tiny/tree/"):
            self._json(
                [{"type": "file", "path": name, "size": len(self.files[name]), "oid": name} for name in self.files]
            )
        elif path.startswith("/api/models/me/tiny"):
            names = [{"rfilename": name} for name in self.files]
            self._json(
                {"_id": "1", "id": "me/tiny", "modelId": "me/tiny", "sha": REVISION, "siblings": names, "tags": []}
            )
        elif path.startswith(f"/me/tiny/resolve/{REVISION}/"):
            self._file(path.removeprefix(f"/me/tiny/resolve/{REVISION}/"))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        self._send(self.files[name], {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": REVISION})

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint(tiny_checkpoint: Path) -> Iterator[str]:
    """A hub on this machine that has `me/tiny`."""
    files = {str(path.relative_to(tiny_checkpoint)): path.read_bytes() for path in tiny_checkpoint.rglob("*.*")}
    handler = type("TinyHub", (Hub,), {"files": files | {"tf_model.h5": b"x", "pytorch_model.bin": b"x"}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def export(name: str, *options: str, endpoint: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads its variables when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "sdrpn.cli.main", "export", name, "--out", "out", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={"HF_ENDPOINT": endpoint, "HF_HOME": str(cwd / "home"), "PATH": "/usr/bin:/bin", "NO_PROXY": "*"},
    )


def test_a_download_is_allowed_and_kept(endpoint: str, tmp_path: Path) -> None:
    refused = export("me/tiny", endpoint=endpoint, cwd=tmp_path)
    assert refused.returncode == 2
    assert "download it, or name a folder (--download)" in refused.stderr
    done = export("me/tiny", "--download", endpoint=endpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()
    (snapshot,) = (tmp_path / "home" / "hub" / "models--me--tiny" / "snapshots").iterdir()
    assert not [path.name for path in snapshot.iterdir() if path.name in ("tf_model.h5", "pytorch_model.bin")]
    again = export("me/tiny", endpoint="http://127.0.0.1:9", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_model_that_the_hub_does_not_have(endpoint: str, tmp_path: Path) -> None:
    done = export("me/gone", "--download", endpoint=endpoint, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert "me/gone is not on the hub, or you have no access" in done.stderr
    assert not (tmp_path / "out").exists()
