"""JPEG decoding by parts (runtime/native/jpeg_module.cpp); may be absent."""

import numpy as np
import numpy.typing as npt

SANITIZED: bool
LIBJPEG_TURBO_VERSION: str

def decode(data: bytes, out: npt.NDArray[np.uint8], *, left: int = 0, top: int = 0, denominator: int = 1) -> None: ...
