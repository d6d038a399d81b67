"""Install releases on a device, go back, and list them. The release that answers stays until another one is ready."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.host.atomic import replacing_directory, require_free_space
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.library_versions import library_versions
from sdrpn.host.machine import Machine, read_machine
from sdrpn.host.progress import ShowProgress, counting, show_nothing
from sdrpn.host.sizes import text_from_bytes
from sdrpn.release.archive import Archive, open_archive
from sdrpn.release.index import CPU, Needs, ReleaseIndex, time_from_text
from sdrpn.release.installed import InstalledRelease, read_installed, unsigned
from sdrpn.release.keys import PublicKey, load_public_keys
from sdrpn.release.signature import require_signed_by
from sdrpn.release.store import ReleaseStore
from sdrpn.release.store_state import Attempt, TrialRecord
from sdrpn.release.trust import require_acceptable
from sdrpn.release.unpack import contents_of, unpack
from sdrpn.workflows.release_trial import try_release

__all__ = [
    "DeviceReleases",
    "InstallRequest",
    "ListedEngines",
    "ListedRelease",
    "ServiceCheck",
    "device_releases",
    "install_release",
    "list_releases",
    "roll_back_release",
]

# Files of a file system, folders and the state, beside the contents.
_SPARE_BYTES = 16_000_000
_POLL_S, _REPLY_S = 0.25, 5.0
_HTTP = re.compile(r"https?://[^/\s]+(/\S*)?\Z")


@dataclass(frozen=True)
class ServiceCheck:
    """How a device changes the service that answers, and sees that it is ready.

    restart: command, without a shell, such as `systemctl restart sdrpn`; None: the owner restarts it. ready_url:
    answers 200 when the service is ready, such as http://127.0.0.1:8000/readyz; None: the service itself confirms the
    release when it starts (`sdrpn serve STORE`).
    """

    restart: str | None = None
    ready_url: str | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.ready_url is not None and not _HTTP.match(self.ready_url):
            raise BadInput(
                f"ready_url is {self.ready_url!r}; expected one such as http://127.0.0.1:8000/readyz",
                options=("ready_url",),
            )
        if self.restart is not None and not self.command:
            raise BadInput("restart is empty; expected a command", options=("restart",))

    @property
    def command(self) -> list[str]:
        """The words of `restart`. Raises BadInput for an open quotation mark."""
        try:
            return shlex.split(self.restart or "")
        except ValueError as error:  # a quotation mark without its partner
            raise BadInput(
                f"restart is {self.restart!r}: {str(error).lower()}; expected a command", options=("restart",)
            ) from error


@dataclass(frozen=True)
class InstallRequest(CheckedFields):
    """Which archive is installed where.

    keys: public keys, one of which must have signed it; empty: no signature is asked for. now: when the update began.
    target: the engines that have to run, or cpu; None: any way to answer that fits. trial: run it once before.
    """

    archive: Path
    store: Path
    now: datetime
    keys: tuple[Path, ...] = ()
    target: str | None = None
    trial: bool = True
    service: ServiceCheck = ServiceCheck()


@dataclass(frozen=True)
class ListedEngines:
    """Engines of a release: for which target, and the library that made them and runs them."""

    target: str
    flavour: str | None
    library_version: str | None


@dataclass(frozen=True)
class ListedRelease:
    """A release of a store. state: current, pending (current, not ready yet), previous, or kept.

    engines: what it has beside its graphs. tools: the versions with which it was made. trial: on this device, with the
    library that ran it and the versions of all.
    """

    id: str
    name: str
    version: int
    state: str
    key_id: str | None
    expires: str | None
    expired: bool
    targets: tuple[str, ...]
    engines: tuple[ListedEngines, ...]
    tools: Mapping[str, str]
    installed: str | None
    result: str | None
    trial: TrialRecord | None
    folder: str


def install_release(
    request: InstallRequest, *, note: Callable[[str], None] = lambda text: None, progress: ShowProgress = show_nothing
) -> ListedRelease:
    """Check an archive, unpack it beside the current release, run it once, and change to it.

    Whatever is refused or fails, the current release goes on; where the service does not become ready, the device goes
    back to it.

    Args:
        note: called with what is worth knowing: a trial that was not run, a service that was restarted
        progress: of unpacking, in bytes
    Raises: BadBundle for a release that was changed, is not signed as asked for, expired, or older than the last;
        BadInput for one that does not fit this machine; RunFailed where the disk is full, the trial failed, or the
        service did not become ready
    """
    keys, store = load_public_keys(request.keys), ReleaseStore(request.store)
    with store.installing():
        with open_archive(request.archive) as archive:
            key_id = _accepted(archive, store, keys, request.now)
            _require_fitting(archive.index, request.target, read_machine())
            folder = _unpacked(archive, store, progress)
        release = read_installed(folder)
        trial = _tried(release, request, store, note)
        store.remember(release.index, key_id, tuple(key.id for key in keys), request.now, trial)
        before = store.current
        if before is None or before.folder.name != folder.name:
            store.change_to(folder.name)
        store.prune()
    _serve(store, release, request.service, note)
    return _listed(store, request.now, folder.name)


def roll_back_release(
    path: Path,
    now: datetime,
    service: ServiceCheck = ServiceCheck(),
    *,
    note: Callable[[str], None] = lambda text: None,
) -> ListedRelease:
    """Exchange the current release and the one before. Raises BadInput where there is none, RunFailed as above."""
    store = _existing(path)
    with store.installing():
        release = store.roll_back()
    _restart(service, note)
    if service.ready_url is not None and not _ready(service):
        raise RunFailed(f"release {release.index.id} is current again, and {_not_ready(service)}; look at the service")
    return _listed(store, now, release.folder.name)


def list_releases(path: Path, now: datetime) -> tuple[ListedRelease, ...]:
    """The releases of a store, the current one first. Raises BadInput or BadBundle."""
    store = _existing(path)
    return tuple(_row(store, release, now) for release in store.releases())


@dataclass(frozen=True)
class DeviceReleases:
    """What a device has: its releases, the newest install, and the libraries that are installed now.

    last_trial: of the newest release that was accepted, also where it failed and the release did not stay.
    """

    releases: tuple[ListedRelease, ...]
    last_trial: Attempt | None
    libraries: Mapping[str, str]


def device_releases(path: Path, now: datetime) -> DeviceReleases:
    """What `sdrpn release list --json` prints. Raises BadInput or BadBundle."""
    return DeviceReleases(list_releases(path, now), ReleaseStore(path).state.attempt, library_versions())


def _existing(path: Path) -> ReleaseStore:
    store = ReleaseStore(path)
    if store.current is None:
        raise BadInput(f"{path} is not a store of releases; install one into it: `sdrpn release install`")
    return store


# What is refused -----------------------------------------------------------------------------------------------------


def _accepted(archive: Archive, store: ReleaseStore, keys: Sequence[PublicKey], now: datetime) -> str | None:
    """The key that signed it; None where nobody asks for one."""
    state = store.state
    if state.key_ids and not keys:
        raise BadInput(
            f"{store.path} takes releases signed by {', '.join(key[:12] for key in state.key_ids)} only; name the key",
            options=("require_signed",),
        )
    key_id = None
    if keys:
        if archive.signed is None:
            raise unsigned(archive.path)
        key_id = require_signed_by(archive.signed, keys, archive.index, archive.path).id
    require_acceptable(archive.index, state.trusted, [key.id for key in keys], store.time(now), archive.path)
    return key_id


def _require_fitting(index: ReleaseIndex, target: str | None, machine: Machine) -> None:
    """Raise BadInput where no way to answer fits this machine: its GPU, its processor, its memory."""
    ways = [needs for needs in index.needs if target in (None, needs.target)]
    if not ways:
        offered = ", ".join(needs.target for needs in index.needs)
        raise BadInput(f"release {index.id} has nothing for {target}; it has {offered}")
    obstacles = [_obstacle(needs, machine) for needs in ways]
    if all(obstacles):
        reasons = "; ".join(f"{needs.target}: {reason}" for needs, reason in zip(ways, obstacles, strict=True))
        raise BadInput(f"release {index.id} does not fit this machine ({reasons}); pack one for it")


def _obstacle(needs: Needs, machine: Machine) -> str | None:
    memory = machine.memory_bytes
    if needs.target != CPU:
        if not machine.gpus:
            return f"its engines need a GPU ({' or '.join(needs.capabilities)}), and here is none"
        gpu = machine.gpus[0]
        here = f"SM{gpu.compute_capability.replace('.', '')}" if gpu.compute_capability else None
        if here is not None and needs.capabilities and here not in needs.capabilities:
            return f"its engines need {' or '.join(needs.capabilities)}, and {gpu.name} is {here}"
        memory = gpu.memory_bytes or memory
    if needs.machine is not None and needs.machine != machine.arch:
        return f"its engines need {needs.machine}, and this is {machine.arch}"
    if memory is not None and needs.memory_bytes > memory:
        return f"it needs {text_from_bytes(needs.memory_bytes)} of memory, and here are {text_from_bytes(memory)}"
    return None


# Installing ----------------------------------------------------------------------------------------------------------


def _unpacked(archive: Archive, store: ReleaseStore, progress: ShowProgress) -> Path:
    """The release's folder, complete and compared with its index."""
    folder = store.folder_of(archive.index)
    if folder.is_dir():
        try:
            read_installed(folder).verify()
        except (BadBundle, BadInput):
            pass  # damaged: it is written again
        else:
            for _ in archive.objects():  # a changed archive is refused even if its release is here
                pass
            return folder
    there = contents_of(store.releases())
    new_bytes = sum(size for digest, size in archive.index.sizes.items() if digest not in there)
    require_free_space(folder, new_bytes + _SPARE_BYTES, advice="or remove what else is on it")
    with replacing_directory(folder, exist_ok=True) as temporary, progress("unpack", None) as advance:
        unpack(archive, temporary, there, counting(advance, archive.index.size_bytes))
    return folder


def _tried(
    release: InstalledRelease, request: InstallRequest, store: ReleaseStore, note: Callable[[str], None]
) -> TrialRecord:
    """The trial's record. Where it failed, the release is removed, unless it is current, and RunFailed raised."""
    target = None if request.target == CPU else request.target
    trial = TrialRecord("not tried: it was not asked for")
    if request.trial:
        reason = _no_room(release.index, read_machine())
        trial = TrialRecord(f"not tried: {reason}") if reason else try_release(release.bundle, target)
        if reason:
            note(f"release {release.index.id} was not tried: {reason}")
    store.note_attempt(release.index, request.now, trial)
    if trial.state.startswith("failed"):
        if (current := store.current) is None or current.folder.name != release.folder.name:
            store.remove(release.folder)
        raise RunFailed(f"release {release.index.id} was not installed: its trial {trial.state}")
    return trial


def _no_room(index: ReleaseIndex, machine: Machine) -> str | None:
    """Why there is no memory for a trial beside the release that answers; None: there is."""
    available = machine.memory_available_bytes
    least = min(needs.memory_bytes for needs in index.needs)
    if available is None or machine.gpus or least <= available:
        return None
    return f"it needs {text_from_bytes(least)} of memory, and {text_from_bytes(available)} are free"


# The service ---------------------------------------------------------------------------------------------------------


def _serve(store: ReleaseStore, release: InstalledRelease, service: ServiceCheck, note: Callable[[str], None]) -> None:
    """Restart the service, wait until it is ready, and go back where it is not."""
    if service.restart is None and service.ready_url is None:
        return
    failed = _failed_start(store, release, service, note)
    if failed is None:
        store.confirm(release.folder.name)
        return
    current = store.current
    back = current
    if current is not None and current.folder.name == release.folder.name:
        back = store.go_back(failed)
    if back is None:
        raise RunFailed(f"release {release.index.id}: {failed}; there is no release to go back to")
    try:
        _restart(service, note)
        again = service.ready_url is None or _ready(service)
    except RunFailed:
        again = False
    then = "" if again else ", whose service is not ready either"
    raise RunFailed(f"release {release.index.id}: {failed}; went back to {back.index.id}{then}")


def _failed_start(
    store: ReleaseStore, release: InstalledRelease, service: ServiceCheck, note: Callable[[str], None]
) -> str | None:
    """Why the service does not answer with this release; None: it does."""
    try:
        _restart(service, note)
    except RunFailed as error:
        return str(error)
    if service.ready_url is not None and not _ready(service):
        return _not_ready(service)
    current = store.current
    if current is None or current.folder.name != release.folder.name:
        return "its service went back by itself"
    return None


def _restart(service: ServiceCheck, note: Callable[[str], None]) -> None:
    if service.restart is None:
        return
    try:
        done = subprocess.run(service.command, capture_output=True, text=True, timeout=service.timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        raise RunFailed(f"`{service.restart}` could not be run ({' '.join(str(error).split())})") from error
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), "it printed no error")
        raise RunFailed(f"`{service.restart}` failed with {done.returncode}: {last}")
    note(f"ran {service.restart}")


def _ready(service: ServiceCheck) -> bool:
    """Whether the URL answers 200 in time."""
    assert service.ready_url is not None
    until = time.monotonic() + service.timeout_s
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(service.ready_url, timeout=_REPLY_S) as reply:
                if reply.status == 200:
                    return True
        except (OSError, ValueError):  # not there yet, or an address that cannot be one
            pass
        time.sleep(_POLL_S)
    return False


def _not_ready(service: ServiceCheck) -> str:
    return f"{service.ready_url} was not ready within {service.timeout_s:g} s"


# Lists ---------------------------------------------------------------------------------------------------------------


def _listed(store: ReleaseStore, now: datetime, name: str) -> ListedRelease:
    return next(_row(store, found, now) for found in store.releases() if found.folder.name == name)


def _row(store: ReleaseStore, release: InstalledRelease, now: datetime) -> ListedRelease:
    index, name, state = release.index, release.folder.name, store.state
    places = {
        found.folder.name: place for place, found in (("previous", store.previous), ("current", store.current)) if found
    }
    place = places.get(name, "kept")
    if place == "current" and state.pending is not None and state.pending.release == name:
        place = "pending"
    record = state.records.get(name)
    return ListedRelease(
        id=index.id,
        name=index.name,
        version=index.version,
        state=place,
        key_id=release.key_id,
        expires=index.expires,
        expired=index.expires is not None and store.time(now) >= time_from_text(index.expires),
        targets=tuple(needs.target for needs in index.needs),
        engines=tuple(
            ListedEngines(needs.target, needs.flavour, needs.library_version)
            for needs in index.needs
            if needs.target != CPU
        ),
        tools=index.tools,
        installed=None if record is None else record.installed,
        result=None if record is None else record.result,
        trial=None if record is None else record.trial,
        folder=str(release.folder),
    )
