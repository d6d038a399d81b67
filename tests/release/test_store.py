"""The releases of a device: what is current, what is kept, and which rules of The Update Framework hold."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.host.atomic import replacing_directory
from sdrpn.release.archive import open_archive
from sdrpn.release.index import ReleaseIndex
from sdrpn.release.store import ReleaseStore, store_of
from sdrpn.release.store_state import TrialRecord
from sdrpn.release.trust import Trusted, require_acceptable
from sdrpn.release.unpack import contents_of, unpack
from tests.release.small_releases import CONTENT, NOW, small_archive, small_index

HERE = Path("a.sdrpn")


def install(store: ReleaseStore, folder: Path, version: int, content: dict[str, bytes] | None = None) -> str:
    """As the verb does it, without what needs a model."""
    path = folder / f"{version}.sdrpn"
    index = small_archive(path, content, version=version)
    with store.installing():
        with open_archive(path) as archive, replacing_directory(store.folder_of(index)) as temporary:
            unpack(archive, temporary, contents_of(store.releases()))
        store.remember(index, None, (), NOW, TrialRecord("passed"))
        store.change_to(index.id)
        store.prune()
    return index.id


def names(store: ReleaseStore) -> tuple[str | None, str | None]:
    """Current and previous."""
    return tuple(found and found.index.id for found in (store.current, store.previous))  # type: ignore[return-value]


class TestStore:
    def test_the_last_is_kept_and_others_go(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        one, two, three = (install(store, tmp_path, version) for version in (1, 2, 3))
        assert names(store) == (three, two)
        assert sorted(found.index.id for found in store.releases()) == sorted([two, three])
        assert one not in store.state.records
        current = store.current
        assert current is not None
        current.verify()

    def test_a_link_that_a_power_cut_left_goes_with_the_next_install(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        one = install(store, tmp_path, 1)
        leftover = store.path / ".previous.0badcafe.partial"
        leftover.symlink_to(Path("releases") / one)  # a release that the next install keeps
        two = install(store, tmp_path, 2)
        assert not leftover.is_symlink()
        assert names(store) == (two, one)
        assert store.previous is not None
        store.previous.verify()

    def test_unchanged_files_are_shared(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        install(store, tmp_path, 2, {**CONTENT, "bundle/a.bin": b"other weights"})
        old, new = store.previous, store.current
        assert old is not None
        assert new is not None
        assert (old.folder / "bundle/block").samefile(new.folder / "bundle/block")
        assert (new.folder / "bundle/a.bin").read_bytes() == b"other weights"
        assert (old.folder / "bundle/a.bin").read_bytes() == b"weights"

    def test_a_damaged_file_is_not_shared(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        current = store.current
        assert current is not None
        damaged = current.folder / "bundle/a.bin"
        damaged.chmod(0o644)
        damaged.write_bytes(b"Weights")
        install(store, tmp_path, 2)
        current = store.current
        assert current is not None
        current.verify()

    def test_a_delta_takes_the_rest_from_what_is_there(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        content = {**CONTENT, "bundle/new": b"new"}
        path = tmp_path / "delta.sdrpn"
        index = small_archive(path, content, version=2, without=frozenset(small_index().sizes))
        with store.installing(), open_archive(path) as archive, replacing_directory(store.folder_of(index)) as folder:
            unpack(archive, folder, contents_of(store.releases()))
        assert (store.folder_of(index) / "bundle/deep/b.bin").read_bytes() == b"weights"

    def test_a_delta_without_its_release(self, tmp_path: Path) -> None:
        path = tmp_path / "delta.sdrpn"
        small_archive(path, without=frozenset(small_index().sizes))
        target = tmp_path / "out"
        with (
            pytest.raises(BadBundle, match=r"is a delta, and lacks bundle/\S+, which no installed release has"),
            open_archive(path) as archive,
            replacing_directory(target) as folder,
        ):
            unpack(archive, folder, {})
        assert not target.exists()

    def test_rolling_back_and_forth(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        one, two = install(store, tmp_path, 1), install(store, tmp_path, 2)
        assert store.roll_back().index.id == one
        assert names(store) == (one, two)
        assert store.roll_back().index.id == two
        assert names(store) == (two, one)

    def test_nothing_to_go_back_to(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        with pytest.raises(BadInput, match="has no release to go back to"):
            store.roll_back()

    def test_a_damaged_one_is_not_gone_back_to(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        _, two = install(store, tmp_path, 1, {"bundle/a": b"1"}), install(store, tmp_path, 2)
        previous = store.previous
        assert previous is not None
        (previous.folder / "bundle/a").unlink()
        with pytest.raises(BadBundle, match="the release before cannot be used, and nothing was changed"):
            store.roll_back()
        assert names(store)[0] == two

    def test_two_installs_at_once(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        with store.installing(), pytest.raises(RunFailed, match="another install into"), store.installing():
            pass

    def test_what_is_a_store(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        assert store_of(store.path) is not None
        assert store_of(tmp_path) is None


class TestService:
    def test_a_service_that_starts_in_vain_goes_back(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        one = install(store, tmp_path, 1)
        store.starting()
        store.confirm(one)
        two = install(store, tmp_path, 2)
        assert [store.starting().index.id for _ in range(4)] == [two, two, one, one]
        assert names(store) == (one, None)

    def test_one_that_is_ready_stays(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        two = install(store, tmp_path, 2)
        store.starting()
        store.confirm(two)
        assert {store.starting().index.id for _ in range(5)} == {two}
        assert store.state.records[two].result == "ready"

    def test_the_first_has_nothing_to_go_back_to(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        one = install(store, tmp_path, 1)
        assert {store.starting().index.id for _ in range(5)} == {one}

    def test_the_one_that_was_ready_is_kept_while_others_never_were(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        one = install(store, tmp_path, 1)
        store.confirm(one)
        install(store, tmp_path, 2)
        three = install(store, tmp_path, 3)
        assert names(store) == (three, one)

    def test_going_back_says_why(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        two = install(store, tmp_path, 2)
        store.go_back("it smoked")
        assert store.state.records[two].result == "failed: it smoked"

    def test_nothing_is_installed(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="has no release; install one"):
            ReleaseStore(tmp_path).starting()


def trusted(index: ReleaseIndex, key_id: str | None = None) -> Trusted:
    return Trusted(index.name, index.version, index.sha256, key_id)


class TestTrust:
    def test_the_next_version(self) -> None:
        require_acceptable(small_index(version=3), trusted(small_index(version=2)), (), NOW, HERE)
        require_acceptable(small_index(version=3), None, (), NOW, HERE)

    def test_the_same_again(self) -> None:
        require_acceptable(small_index(version=3), trusted(small_index(version=3)), (), NOW, HERE)

    def test_an_older_one_is_a_rollback(self) -> None:
        with pytest.raises(BadBundle, match="has version 2; this device accepted 3 before, and takes no older one"):
            require_acceptable(small_index(version=2), trusted(small_index(version=3)), (), NOW, HERE)

    def test_another_of_the_same_version(self) -> None:
        other = small_index({"bundle/x": b"x"}, version=3)
        with pytest.raises(BadBundle, match="is another release of version 3 than this device accepted before"):
            require_acceptable(other, trusted(small_index(version=3)), (), NOW, HERE)

    def test_another_model(self) -> None:
        with pytest.raises(BadBundle, match="is a release of cars; this store has signs"):
            require_acceptable(small_index(version=9, name="cars"), trusted(small_index()), (), NOW, HERE)

    def test_a_version_is_trusted_as_long_as_its_key(self) -> None:
        """A stolen key may have signed the highest version there is: after an exchange of keys, that is forgotten."""
        before = trusted(small_index(version=2**53 - 1), "stolen")
        require_acceptable(small_index(version=3), before, ("new",), NOW, HERE)
        with pytest.raises(BadBundle, match="takes no older one"):
            require_acceptable(small_index(version=3), before, ("new", "stolen"), NOW, HERE)

    @pytest.mark.parametrize(("now", "expired"), [(-1, False), (0, True), (1, True)])
    def test_an_expired_one_is_a_freeze(self, now: int, expired: bool) -> None:
        index = small_index(expires="2027-06-01T00:00:00Z")
        time = datetime(2027, 6, 1, tzinfo=timezone.utc) + timedelta(seconds=now)
        if not expired:
            require_acceptable(index, None, (), time, HERE)
            return
        with pytest.raises(BadBundle, match="expired at 2027-06-01T00:00:00Z; get a newer one, or correct"):
            require_acceptable(index, None, (), time, HERE)

    def test_a_clock_that_was_set_back_makes_nothing_fresh(self, tmp_path: Path) -> None:
        store = ReleaseStore(tmp_path / "store")
        install(store, tmp_path, 1)
        assert store.time(NOW - timedelta(days=900)) == NOW
        assert store.time(NOW + timedelta(days=1)) == NOW + timedelta(days=1)
