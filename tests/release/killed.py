"""Install and go back over and over, in processes that are killed at random moments. Prints a line of JSON for each.

python -m tests.release.killed FOLDER KILLED SEED
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from sdrpn.errors import SdrpnError
from sdrpn.release.store import ReleaseStore
from sdrpn.workflows.release_install import InstallRequest, install_release, roll_back_release
from tests.release.small_releases import NOW, small_archive

__all__ = ["main"]

# Of the time that an install takes: some are killed at its end, and some end before.
_LONGEST_SHARE = 1.3
_FILES = 12


def content(version: int) -> dict[str, bytes]:
    """Most files are those of the version before."""
    shared = {f"bundle/weights/{number}.bin": bytes([number]) * 40_000 for number in range(_FILES)}
    return {**shared, "bundle/manifest.json": str(version).encode(), "bundle/new.bin": bytes([version % 256]) * 90_000}


def work(folder: Path, step: int) -> None:
    """Installing, a service that starts and is not ready, going back, in turns."""
    store = folder / "store"
    if step % 4 == 2:
        ReleaseStore(store).starting()
    elif step % 4 == 3:
        roll_back_release(store, NOW)
    else:
        install_release(InstallRequest(folder / f"{step}.sdrpn", store, NOW, trial=False))


def main() -> None:
    """Run and kill; after each the current release must be whole, and a service that starts must find a whole one."""
    folder, count, generator = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    small_archive(folder / "0.sdrpn", content(1), version=1)
    started = time.monotonic()
    work(folder, 0)
    install_s = time.monotonic() - started
    killed = step = 0
    while killed < count:
        step += 1
        small_archive(folder / f"{step}.sdrpn", content(step + 1), version=step + 1)
        child = os.fork()
        if child == 0:
            try:
                work(folder, step)
            except SdrpnError as error:  # there is nothing to go back to
                sys.stderr.write(f"{step}: {error}\n")
                os._exit(2)
            os._exit(0)
        time.sleep(generator.uniform(0, _LONGEST_SHARE * install_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        current = ReleaseStore(folder / "store").current
        assert current is not None
        current.verify()
        killed += os.WIFSIGNALED(status)
        found = {"step": step, "killed": os.WIFSIGNALED(status), "version": current.index.version}
        sys.stdout.write(json.dumps(found) + "\n")
        (folder / f"{step}.sdrpn").unlink()


if __name__ == "__main__":
    main()
