"""How many threads: cores that are free, one for small models, what the user says."""

import os
import time
from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.host import threads
from sdrpn.host.threads import CpuThreads, choose_threads, free_cores, usable_cores

LARGE, SMALL = 1_000_000, 70_000


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)


def with_free(monkeypatch: pytest.MonkeyPatch, cores: float) -> None:
    monkeypatch.setattr(threads, "free_cores", lambda: cores)


@pytest.mark.usefixtures("eight_cores")
class TestChoice:
    @pytest.mark.parametrize(
        ("free", "count", "spinning"),
        [
            (8.0, 8, True),
            (7.8, 8, True),
            (7.6, 7, True),
            (3.1, 3, True),
            (0.9, 1, True),
            (0.2, 1, False),
            (0.0, 1, False),
        ],
    )
    def test_one_per_free_core(self, monkeypatch: pytest.MonkeyPatch, free: float, count: int, spinning: bool) -> None:
        with_free(monkeypatch, free)
        assert choose_threads(None, LARGE) == CpuThreads(count, spinning)

    def test_small_models_get_one_without_a_measurement(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "free_cores", lambda: pytest.fail("measured"))
        assert choose_threads(None, SMALL).count == 1
        assert choose_threads(1, LARGE).count == 1

    def test_a_training_of_a_small_model_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_free(monkeypatch, 8.0)
        assert choose_threads(None).count == 8

    def test_what_the_user_says_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with_free(monkeypatch, 3.0)
        assert choose_threads(6, SMALL) == CpuThreads(6, spinning=False)
        assert choose_threads(3, SMALL) == CpuThreads(3, spinning=True)

    @pytest.mark.parametrize(("text", "count"), [("2", 2), ("16", 8), ("0", 8), ("many", 8), ("4,2", 8)])
    def test_the_environment_is_an_upper_bound(self, monkeypatch: pytest.MonkeyPatch, text: str, count: int) -> None:
        with_free(monkeypatch, 8.0)
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert choose_threads(None, LARGE).count == count
        assert choose_threads(5, LARGE).count == 5

    @pytest.mark.parametrize("wished", [0, -1, 257])
    def test_others_are_refused(self, wished: int) -> None:
        with pytest.raises(BadInput, match=rf"threads is {wished}; expected 1 to 256"):
            choose_threads(wished, LARGE)


class TestFreeCores:
    @pytest.mark.parametrize(
        ("idle_s", "own_s", "free"), [(0.2, 0.0, 2.0), (0.05, 0.0, 0.5), (0.1, 0.05, 1.5), (9, 0, 4)]
    )
    def test_idle_time_and_this_process_s_own(
        self, monkeypatch: pytest.MonkeyPatch, idle_s: float, own_s: float, free: float
    ) -> None:
        idle, own, clock = iter((100.0, 100.0 + idle_s)), iter((1.0, 1.0 + own_s)), iter((5.0, 5.1))
        monkeypatch.setattr(threads, "usable_cores", lambda: 4)
        monkeypatch.setattr(threads, "_idle_s", lambda: next(idle))
        monkeypatch.setattr(time, "process_time", lambda: next(own))
        monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        assert free_cores.__wrapped__() == pytest.approx(free)

    def test_unknown_is_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "_idle_s", lambda: None)
        assert free_cores.__wrapped__() == usable_cores()

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
    def test_only_the_cores_of_this_process_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(
            "cpu  9 9 9 9999 99 0 0\ncpu0 1 1 1 200 20 0 0\ncpu1 1 1 1 3000 300 0 0\ncpu12 1 1 1 4000 0 0 0\nintr 5\n"
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 12})
        monkeypatch.setattr(os, "sysconf", lambda name: 100)
        assert threads._idle_s(tmp_path) == pytest.approx(42.2)


class TestUsableCores:
    @pytest.mark.parametrize(("text", "cores"), [("max 100000", 8), ("250000 100000", 3), ("10000 100000", 1), ("", 8)])
    def test_a_container_s_quota(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cores: int) -> None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
        assert usable_cores(tmp_path) == cores
