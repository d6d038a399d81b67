"""Releases of a few bytes, and keys to sign them."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sdrpn.host.listed_files import FileInfo
from sdrpn.release.archive import write_archive
from sdrpn.release.content import ReleaseFile, objects_of
from sdrpn.release.index import CPU, Needs, ReleaseIndex
from sdrpn.release.keys import load_private_key
from sdrpn.release.signature import sign_index

__all__ = ["CONTENT", "NOW", "small_archive", "small_index", "write_key_pair"]

NOW = datetime(2027, 1, 31, 12, tzinfo=timezone.utc)
# Two files are equal, one is empty, and one has just a block of tar.
CONTENT = {
    "bundle/manifest.json": b"{}",
    "bundle/a.bin": b"weights",
    "bundle/deep/b.bin": b"weights",
    "bundle/empty": b"",
    "bundle/block": bytes(512),
}


def write_key_pair(folder: Path, name: str = "key", password: bytes | None = None) -> tuple[Path, Path]:
    """A new private key and its public one, as OpenSSL writes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def small_index(
    content: dict[str, bytes] | None = None, *, version: int = 1, name: str = "signs", expires: str | None = None
) -> ReleaseIndex:
    """An index of these files."""
    files = CONTENT if content is None else content
    return ReleaseIndex(
        name=name,
        version=version,
        created="2027-01-01T00:00:00Z",
        expires=expires,
        needs=(Needs(CPU, 1000),),
        files={path: FileInfo(len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()},
        tools={"sdrpn": "1"},
    )


def small_archive(
    path: Path,
    content: dict[str, bytes] | None = None,
    *,
    key: Path | None = None,
    version: int = 1,
    name: str = "signs",
    expires: str | None = None,
    without: frozenset[str] = frozenset(),
) -> ReleaseIndex:
    """An archive of these files. without: SHA-256 of contents that a delta leaves out."""
    index = small_index(content, version=version, name=name, expires=expires)
    files = {each: ReleaseFile(data, index.files[each]) for each, data in (content or CONTENT).items()}
    signature = None if key is None else sign_index(index, load_private_key(key))
    write_archive(path, index, signature, objects_of(files, without))
    return index
