"""The signature of a release, in the format of OpenSSF Model Signing 1.0. Knows digests and keys, no files.

A Sigstore bundle (v0.3) holds a DSSE envelope, which holds an in-toto statement: the subject is the release, with one
digest over all; the predicate lists every file with its own. `model_signing verify key` reads it
(github.com/sigstore/model-transparency, docs/model_signing_format.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdrpn.errors import BadBundle
from sdrpn.host.json_reader import Misfit, parse_json
from sdrpn.release.index import SIGNATURE_NAME, ReleaseIndex
from sdrpn.release.keys import PrivateKey, PublicKey

__all__ = [
    "SignedDigests",
    "read_signature",
    "require_canonical",
    "require_same_files",
    "require_signed_by",
    "sign_index",
]

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# How a verifier that has the files, and not our index, makes the same list of them.
_SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE_NAME],
}


@dataclass(frozen=True)
class SignedDigests:
    """What a signature says, before anybody checked who made it.

    key_id: of the key that it names. message: what the key signed. digests: path -> SHA-256.
    """

    name: str
    key_id: str
    signature: bytes
    message: bytes
    digests: Mapping[str, str]


def sign_index(index: ReleaseIndex, key: PrivateKey) -> bytes:
    """The content of `model.sig`."""
    payload = json.dumps(_statement(index), sort_keys=True, separators=(",", ":")).encode()
    return _bundle_bytes(payload, key.sign(_message(payload)), key.public.id)


def read_signature(content: bytes, where: Path) -> SignedDigests:
    """Read a signature, of this package or of another that writes the format. Raises BadBundle."""
    try:
        value = parse_json(content)
        if value["mediaType"] != _MEDIA_TYPE:
            raise Misfit(f"its media type is {value['mediaType']}; expected {_MEDIA_TYPE}")
        envelope = value["dsseEnvelope"]
        if envelope["payloadType"] != _PAYLOAD_TYPE or len(envelope["signatures"]) != 1:
            raise Misfit(f"expected one signature of {_PAYLOAD_TYPE}")
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        key_id = str(value["verificationMaterial"]["publicKey"]["hint"])
        name, digests = _listed(parse_json(payload))
    except (Misfit, KeyError, TypeError, ValueError, binascii.Error) as error:
        reason = str(error) if isinstance(error, Misfit) else "an entry is missing, or of another type"
        raise BadBundle(f"{where}: {SIGNATURE_NAME} cannot be understood ({reason}); get the release again") from error
    return SignedDigests(name, key_id, signature, _message(payload), digests)


def require_signed_by(signed: SignedDigests, keys: Sequence[PublicKey], index: ReleaseIndex, where: Path) -> PublicKey:
    """The key, of these, that signed exactly this index and its files. Raises BadBundle."""
    key = next((key for key in keys if key.id == signed.key_id), None)
    if key is None:
        trusted = ", ".join(key.id[:12] for key in keys)
        raise BadBundle(
            f"{where} is signed by key {signed.key_id[:12]}; expected {trusted}: get a release that is signed by it"
        )
    try:
        key.verify(signed.signature, signed.message)
    except BadBundle as error:
        raise BadBundle(f"{where}: {error}") from None
    require_same_files(signed, index, where)
    return key


def require_same_files(signed: SignedDigests, index: ReleaseIndex, where: Path) -> None:
    """Raise BadBundle where a signature is about other files than an index."""
    if signed.digests != index.digests:
        different = {name for name, _ in signed.digests.items() ^ index.digests.items()}
        raise BadBundle(
            f"{where}: {SIGNATURE_NAME} is about other files than release.json, such as {min(different)}; get the "
            "release again"
        )


def require_canonical(content: bytes, where: Path) -> None:
    """Raise BadBundle for a signature file that is not, to the byte, as this package writes it."""
    signed = read_signature(content, where)
    value = parse_json(content)
    payload = base64.b64decode(value["dsseEnvelope"]["payload"])
    if _bundle_bytes(payload, signed.signature, signed.key_id) != content:
        raise BadBundle(f"{where}: {SIGNATURE_NAME} was changed; get the release again")


def _statement(index: ReleaseIndex) -> dict[str, Any]:
    """The in-toto statement. The subject's digest is that of all digests in the order of the predicate."""
    ordered = sorted(index.digests.items(), key=lambda item: PurePosixPath(item[0]).parts)
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": index.name, "digest": {"sha256": _root(digest for _, digest in ordered)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": _SERIALIZATION,
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in ordered],
        },
    }


def _listed(statement: Any) -> tuple[str, dict[str, str]]:
    """The name and the digests of a statement. Raises Misfit, KeyError or TypeError."""
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
        raise Misfit(f"its predicate is {statement['predicateType']}; expected {_PREDICATE_TYPE}")
    [subject], resources = statement["subject"], statement["predicate"]["resources"]
    if statement["predicate"]["serialization"]["method"] != "files":
        raise Misfit("it lists parts of files; expected whole files")
    if any(resource["algorithm"] != "sha256" for resource in resources):
        raise Misfit("a digest is not SHA-256")
    digests = {str(resource["name"]): str(resource["digest"]) for resource in resources}
    if len(digests) != len(resources):
        raise Misfit("it lists a file twice")
    if subject["digest"]["sha256"] != _root(resource["digest"] for resource in resources):
        raise Misfit("the digest over all is not that of the list")
    return str(subject["name"]), digests


def _root(digests: Any) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _message(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (github.com/secure-systems-lab/dsse, protocol.md)."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _bundle_bytes(payload: bytes, signature: bytes, key_id: str) -> bytes:
    value = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key_id}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
