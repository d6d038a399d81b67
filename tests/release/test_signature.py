"""Signatures: OpenSSF's format, offline keys, and what is refused."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.errors import BadBundle, BadInput
from sdrpn.release.index import index_from_bytes
from sdrpn.release.keys import load_private_key, load_public_keys
from sdrpn.release.signature import read_signature, require_signed_by, sign_index
from tests.release.small_releases import CONTENT, small_index, write_key_pair

HERE = Path("release")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key_pair(tmp_path_factory.mktemp("keys"))


def test_the_statement_lists_every_file(keys: tuple[Path, Path]) -> None:
    index = small_index()
    bundle = json.loads(sign_index(index, load_private_key(keys[0])))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    resources = {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    assert resources == index.digests
    assert set(resources) == {"release.json", *CONTENT}


def test_its_key_is_found_among_others(keys: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = write_key_pair(tmp_path)
    index = small_index()
    signed = read_signature(sign_index(index, load_private_key(keys[0])), HERE)
    trusted = load_public_keys([other, keys[1]])
    assert require_signed_by(signed, trusted, index, HERE).id == trusted[1].id == signed.key_id


def test_another_key(keys: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = write_key_pair(tmp_path)
    signed = read_signature(sign_index(small_index(), load_private_key(keys[0])), HERE)
    with pytest.raises(
        BadBundle, match=rf"release is signed by key {signed.key_id[:12]}; expected [0-9a-f]{{12}}: get"
    ):
        require_signed_by(signed, load_public_keys([other]), small_index(), HERE)


def test_another_key_that_claims_to_be_the_trusted_one(keys: tuple[Path, Path], tmp_path: Path) -> None:
    forger, _ = write_key_pair(tmp_path)
    [trusted] = load_public_keys([keys[1]])
    forged = json.loads(sign_index(small_index(), load_private_key(forger)))
    forged["verificationMaterial"]["publicKey"]["hint"] = trusted.id
    with pytest.raises(BadBundle, match="the signature is not one of key"):
        require_signed_by(read_signature(json.dumps(forged).encode(), HERE), [trusted], small_index(), HERE)


def test_a_signature_of_another_release(keys: tuple[Path, Path]) -> None:
    signed = read_signature(sign_index(small_index(version=2), load_private_key(keys[0])), HERE)
    with pytest.raises(BadBundle, match=r"is about other files than release.json, such as release.json"):
        require_signed_by(signed, load_public_keys([keys[1]]), small_index(version=3), HERE)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"mediaType": "x"}', b'{"mediaType": 1, "dsseEnvelope": {}}', b"\xff"]
)
def test_what_is_not_one(content: bytes) -> None:
    with pytest.raises(BadBundle, match=r"model.sig cannot be understood"):
        read_signature(content, HERE)


class TestKeys:
    def test_a_password(self, tmp_path: Path) -> None:
        private, public = write_key_pair(tmp_path, password=b"secret")
        assert load_private_key(private, b"secret").public.id == load_public_keys([public])[0].id
        with pytest.raises(BadInput, match="it needs its password"):
            load_private_key(private)
        with pytest.raises(BadInput, match="the password is wrong"):
            load_private_key(private, b"other")

    def test_other_files(self, tmp_path: Path) -> None:
        private, _ = write_key_pair(tmp_path)
        (tmp_path / "text").write_text("no key")
        with pytest.raises(BadInput, match="is not a public key; expected PEM"):
            load_public_keys([tmp_path / "text"])
        with pytest.raises(BadInput, match="is a private key, which no device should have"):
            load_public_keys([private])
        with pytest.raises(BadInput, match="cannot be read"):
            load_public_keys([tmp_path / "none"])

    def test_another_kind(self, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        key = ed25519.Ed25519PrivateKey.generate().public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (tmp_path / "ed.pub").write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
        with pytest.raises(BadInput, match="another kind of key; expected one on the curve P-256"):
            load_public_keys([tmp_path / "ed.pub"])

    def test_openssl_makes_them(self, tmp_path: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        make = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        commands = f"{make} && openssl ec -in key.pem -pubout -out key.pub"
        subprocess.run(commands, shell=True, check=True, cwd=tmp_path, capture_output=True)
        private = load_private_key(tmp_path / "key.pem")
        assert private.public.id == load_public_keys([tmp_path / "key.pub"])[0].id


CHECK = """
import pathlib, sys
import model_signing.verifying as verifying
folder, key = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, folder / "model.sig")
"""


def test_openssf_reads_it(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """The reference implementation, where it is installed (pip install model-signing pyopenssl)."""
    pytest.importorskip("model_signing.verifying", exc_type=ImportError)
    index = small_index()
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "release.json").write_bytes(index.to_bytes())
    (tmp_path / "model.sig").write_bytes(sign_index(index, load_private_key(keys[0])))
    command = [sys.executable, "-c", CHECK, str(tmp_path), str(keys[1])]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (tmp_path / "bundle/a.bin").write_bytes(b"Weights")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"format_version": 1', b'"format_version": 2', "has format version 2"),
        (b'"version": 1', b'"version": 0', "version is 0; expected 1"),
        (b'"name": "signs"', b'"name": "../x"', r"name is \"../x\""),
        (b'"created": "2027', b'"created": "x027', "expected a time in UTC"),
        (b'{\n "created"', b'{\n  "created"', "was changed, or written by something else"),
    ],
)
def test_an_index_is_read_as_it_was_written(old: bytes, new: bytes, message: str) -> None:
    content = small_index().to_bytes()
    assert index_from_bytes(content, HERE) == small_index()
    assert old in content
    with pytest.raises(BadBundle, match=message):
        index_from_bytes(content.replace(old, new, 1), HERE)
