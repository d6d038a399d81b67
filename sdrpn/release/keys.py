"""Keys that sign releases: elliptic curves in PEM files, as OpenSSL makes them. Alone in needing cryptography."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.errors import BadBundle, BadInput, MissingDependency
from sdrpn.host.json_reader import Misfit, read_small_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

__all__ = ["PrivateKey", "PublicKey", "load_private_key", "load_public_keys"]

_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_PUBLISH = "openssl ec -in key.pem -pubout -out key.pub"
_MOST_BYTES = 64 * 1024
# Bits of the curve -> hash, as Sigstore's registry of algorithms pairs them.
_HASHES = {256: "SHA256", 384: "SHA384", 521: "SHA512"}
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class PublicKey:
    """A key that signatures are checked with."""

    def __init__(self, key: EllipticCurvePublicKey) -> None:
        self._key = key

    @property
    def id(self) -> str:
        """SHA-256 of its PEM form, which signatures name it by."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        pem = self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(pem).hexdigest()

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raise BadBundle for a signature that this key did not make."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

        try:
            self._key.verify(signature, message, ECDSA(_hash(self._key.curve.key_size)))
        except InvalidSignature:
            raise BadBundle(f"the signature is not one of key {self.id[:12]}; get the release again") from None


class PrivateKey:
    """A key that signs."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> PublicKey:
        """Its other half."""
        return PublicKey(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """An ECDSA signature, in DER."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

        return self._key.sign(message, ECDSA(_hash(self._key.curve.key_size)))


def load_private_key(path: Path, password: bytes | None = None) -> PrivateKey:
    """Read a private key. Raises BadInput, also for a wrong password, or MissingDependency."""
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _content(path)
    try:
        key = load_pem_private_key(content, password)
    except TypeError as error:  # a password is missing, or there is one too many
        needed = "it needs its password" if password is None else "it has no password"
        raise BadInput(f"{path} cannot be opened: {needed}", options=("password_file",)) from error
    except ValueError as error:
        raise BadInput(
            f"{path} is not a private key, or the password is wrong; expected PEM, as made by `{_MAKE}`"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise BadInput(f"{path} is another kind of key; expected one on the curve P-256, P-384 or P-521: `{_MAKE}`")
    return PrivateKey(key)


def load_public_keys(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """Read public keys. Raises BadInput or MissingDependency."""
    return tuple(_public_key(path) for path in paths)


def _public_key(path: Path) -> PublicKey:
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _content(path)
    if b"PRIVATE KEY" in content:
        raise BadInput(f"{path} is a private key, which no device should have; write the public one: `{_PUBLISH}`")
    try:
        key = load_pem_public_key(content)
    except ValueError as error:
        raise BadInput(f"{path} is not a public key; expected PEM, as made by `{_PUBLISH}`") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise BadInput(f"{path} is another kind of key; expected one on the curve P-256, P-384 or P-521")
    return PublicKey(key)


def _content(path: Path) -> bytes:
    try:
        return read_small_file(path, _MOST_BYTES)
    except Misfit as error:
        raise BadInput(f"{path} cannot be read as a key ({error}); expected a PEM file") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); expected a key in a PEM file") from error


def _hash(bits: int) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    found: HashAlgorithm = getattr(hashes, _HASHES[bits])()
    return found


def _require_library() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old releases of Python and OpenSSL, at its import
            import cryptography.hazmat.primitives.serialization
    except ImportError as error:
        raise MissingDependency("signatures need cryptography: pip install 'sdrpn[release]'") from error
    del cryptography
