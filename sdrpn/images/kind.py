"""Identify files that cannot be read as pictures by their signature: unsupported formats, and other kinds of file."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HEAD_BYTES", "is_heif", "kind_of"]

HEAD_BYTES = 1024

# Brands of the ISO container ("ftyp", then one of these) that hold HEVC pictures.
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_CONVERT = "save it as PNG or JPEG"


@dataclass(frozen=True)
class _Kind:
    pattern: re.Pattern[bytes]  # matches at the file's start
    name: str
    fix: str


def _kind(pattern: bytes, name: str, fix: str = _CONVERT) -> _Kind:
    return _Kind(re.compile(pattern, re.DOTALL | re.IGNORECASE), name, fix)


_KINDS = (
    _kind(rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    _kind(rb"....ftypavi[fs]", "an AVIF picture that this Pillow cannot read"),
    _kind(rb"....ftypcrx |FUJIFILMCCD-RAW|IIRO|MMOR|IIU\x00", "a camera's raw picture"),
    _kind(rb"....ftyp", "a video", "save one of its frames as PNG or JPEG"),
    _kind(rb"\x1aE\xdf\xa3|RIFF....AVI ", "a video", "save one of its frames as PNG or JPEG"),
    _kind(rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+", "a TIFF of a kind that Pillow cannot read"),
    _kind(rb"8BP[SB]", "a Photoshop document"),
    _kind(rb"v/1\x01", "an OpenEXR picture"),
    _kind(rb"#\?(?:RADIANCE|RGBE)", "a Radiance HDR picture"),
    _kind(rb"DDS ", "a DirectDraw texture"),
    _kind(rb"SIMPLE  =", "a FITS file"),
    _kind(rb".{128}DICM", "a DICOM file"),
    _kind(rb"P[fF]\s", "a portable float map"),
    _kind(rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", "a Windows metafile"),
    _kind(rb"%PDF-", "a PDF document", "save the page as PNG or JPEG"),
    _kind(rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", "save it as PNG or JPEG"),
    _kind(rb"\x93NUMPY", "a NumPy array", "pass np.load(...) as (H, W, 3) uint8"),
    _kind(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "an archive", "unpack it first"),
    _kind(rb"(?:\xef\xbb\xbf)?\s*version https://(?:git-lfs|hawser)\.", "a git-lfs pointer", "fetch it: git lfs pull"),
    _kind(
        rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?\?>\s*)?(?:<!--.*?-->\s*)*(?:<!doctype svg.*?>\s*)?<svg", "an SVG drawing"
    ),
    _kind(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head)", "a web page (HTML)", "download the picture itself"),
    _kind(rb"data:image/", "a data: URI", "decode its base64 text first"),
)


def is_heif(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a HEIC or HEIF picture."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def kind_of(head: bytes) -> tuple[str, str] | None:
    """What an unreadable file is, by its first HEAD_BYTES, and what to do; None where that is not known."""
    if is_heif(head):
        return "a HEIC picture", "install its reader (pip install 'sdrpn[heif]') or save it as JPEG"
    return next(((kind.name, kind.fix) for kind in _KINDS if kind.pattern.match(head)), None)
