"""Run something in another working folder, which stays as it is for the rest of the process. Linux only."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sdrpn.errors import RunFailed

__all__ = ["NoFolderOfItsOwn", "run_in_folder"]

_CLONE_FS = 0x200  # of unshare(2): the working folder is the thread's own from then on
_Result = TypeVar("_Result")


class NoFolderOfItsOwn(RunFailed):
    """Threads of this system have the working folder of their process."""


def run_in_folder(folder: Path, work: Callable[[], _Result]) -> _Result:
    """The result of `work`, called on a thread of its own whose working folder is `folder`.

    Raises: NoFolderOfItsOwn where threads cannot have one, such as in containers that may not unshare anything; what
        `work` raises
    """

    def there() -> _Result:
        unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None) if sys.platform == "linux" else None
        if unshare is None or unshare(_CLONE_FS) != 0:
            raise NoFolderOfItsOwn(
                f"this system has no working folder for one thread, and {folder} has to be one for a moment"
            )
        os.chdir(folder)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(there).result()
