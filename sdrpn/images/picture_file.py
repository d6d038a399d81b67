"""Find the reader of a picture file and let Pillow decode it: limits first, one-line errors, nothing printed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

from sdrpn.errors import BadImage
from sdrpn.images.kind import HEAD_BYTES, is_heif, kind_of
from sdrpn.images.limits import PNG_SIGNATURE, check_file_size, check_jpeg_scans, check_size, without_png_text

__all__ = ["FORMATS", "identified", "loaded", "one_line"]

# The formats that are accepted. Pillow reads more, but some of its readers start programs (EPS) or have no signature.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "QOI")
HEIF = "HEIF"  # read by the package pillow-heif

_warning_filters = threading.Lock()

# Pillow's logger has no handler, so Python would print its errors to stderr; they are raised as exceptions anyway.
# Handlers that a program sets up still receive them.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def identified(file: IO[bytes], label: str, max_pixels: int) -> ImageFile.ImageFile:
    """The reader of a file, after its size and the cost of decoding it were checked.

    Does what `Image.open` does, without Pillow's limit, which is global and warns or refuses by other rules.
    Raises: BadImage.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise BadImage(f"{label} is empty (0 bytes); expected a picture")
    if head.startswith(PNG_SIGNATURE):
        file = without_png_text(file, label)
    image = _opened(file, head, label)
    check_size(image.size, label, max_pixels, image.format)
    check_file_size(file.seek(0, os.SEEK_END), image.size, label)
    if image.format in ("JPEG", "MPO"):
        file.seek(0)
        check_jpeg_scans(file.read(), image.size, label)
    return image


def loaded(image: Image.Image) -> None:
    """Decode the pixels without printing anything. Raises whatever Pillow raises."""
    if image.format == "TIFF":
        _silence_libtiff()
    with _without_size_warning(image.size):
        image.load()


def one_line(error: Exception) -> str:
    """The text of an error on one line, or its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def _opened(file: IO[bytes], head: bytes, label: str) -> ImageFile.ImageFile:
    Image.init()
    names = (HEIF,) if is_heif(head) and _can_read_heif() else FORMATS
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _silence_libtiff()
    for name in names:
        factory, accept = Image.OPEN.get(name, (None, None))
        file.seek(0)
        try:
            if factory is not None and (accept is None or accept(head[:16]) is True):
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # how Pillow's readers reject a file of another format
        except MemoryError:
            raise
        except Image.DecompressionBombError as error:
            raise BadImage(f"{label} is larger than Pillow decodes ({one_line(error)}): scale it down first") from error
        except Exception as error:  # readers raise exceptions of any type on hostile files
            raise BadImage(f"{label} cannot be decoded as {name} ({one_line(error)})") from error
    if names == (HEIF,):
        raise BadImage(f"{label} is a HEIC picture that cannot be decoded: damaged or cut off")
    kind = kind_of(head)
    if kind is not None:
        raise BadImage(f"{label} is not a picture that can be read: it is {kind[0]}; {kind[1]}")
    raise BadImage(f"{label} is not a picture that can be read; expected one of {', '.join(FORMATS)}")


@functools.cache
def _can_read_heif() -> bool:
    """Whether pillow-heif is installed and registered as a reader."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@contextlib.contextmanager
def _without_size_warning(size_wh: tuple[int, int]) -> Iterator[None]:
    """Silence Pillow's second size check inside some decoders: the size was checked already.

    Filters are changed only above Pillow's limit, because they are global to the process.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or size_wh[0] * size_wh[1] <= limit:
        yield
        return
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from printing to stderr what Pillow raises or tolerates anyway.

    Pillow has no setting for this. The libtiff that Pillow loaded is looked up among the libraries of the process;
    where it cannot be found, e.g. because it is linked into Pillow statically, the lines are printed.
    """
    with contextlib.suppress(OSError, AttributeError):
        for path in _loaded_libraries("libtiff"):
            library = ctypes.CDLL(str(path))
            for setter in (library.TIFFSetWarningHandler, library.TIFFSetErrorHandler):
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)


def _loaded_libraries(stem: str) -> set[Path]:
    lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    paths = {Path(line.split(maxsplit=5)[-1].strip()) for line in lines if stem in line}
    return {path for path in paths if path.name.startswith(stem)}
