"""A bundle is exchanged while requests run: none is lost, and one that fails its trial changes nothing."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.runtime.server.trial import TrialLimit
from sdrpn.tags import shipped_scene
from sdrpn.workflows.serve import ServeRequest, server_app
from tests.endless_graph import make_vision_endless
from tests.runtime.server.serving import Server, chat_body, scene_url, serving

EXPECTED = shipped_scene().expected


class Bundles:
    """What a reload opens."""

    def __init__(self) -> None:
        self.path: Path | str = "demo"
        self.opened: list[Session] = []
        self.prepare: Callable[[Session], None] = lambda session: None

    def __call__(self) -> Session:
        session = Session.open(self.path, threads=1)
        self.opened.append(session)
        self.prepare(session)
        return session


def is_closed(session: Session) -> bool:
    try:
        session._scheduler.require_open()
    except RunFailed:
        return True
    return False


@pytest.fixture
def bundles() -> Bundles:
    return Bundles()


@pytest.fixture
def server(bundles: Bundles) -> Iterator[Server]:
    first = bundles()
    with first, serving(first, ServerOptions(model="demo"), bundles) as running:
        yield running


def answered(server: Server, **entries: Any) -> str:
    reply = server.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8, **entries))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def reload(server: Server) -> Any:
    return server.post("/admin/reload", {})


def test_new_requests_go_to_the_new_one(server: Server, bundles: Bundles) -> None:
    assert answered(server) == EXPECTED
    found = reload(server).json()
    assert (found["generation"], found["model"]) == (2, "demo")
    assert answered(server) == EXPECTED
    first, second = bundles.opened
    deadline = time.monotonic() + 20
    while not is_closed(first):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_closed(second)


def test_no_request_is_lost(server: Server) -> None:
    done, replies = threading.Event(), list[str]()

    def ask() -> None:
        while not done.is_set():
            replies.append(answered(server))

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(4)]
        try:
            for generation in (2, 3, 4):
                assert reload(server).json()["generation"] == generation
                before, deadline = len(replies), time.monotonic() + 60
                while len(replies) < before + 4 and time.monotonic() < deadline:  # of the new one, and perhaps the old
                    time.sleep(0.01)
        finally:
            done.set()
        for each in asking:
            each.result(60)
    assert len(replies) >= 12
    assert set(replies) == {EXPECTED}


def test_one_that_fails_its_trial_changes_nothing(server: Server, bundles: Bundles) -> None:
    def spoil(session: Session) -> None:
        def failing(*arguments: Any) -> Any:
            raise RunFailed("the tail graph failed")

        session._decoder.run_tail = failing  # type: ignore[method-assign, assignment]

    bundles.prepare = spoil
    reply = reload(server)
    assert reply.status_code == 422
    assert "the former one still answers: the tail graph failed" in reply.json()["error"]["message"]
    assert is_closed(bundles.opened[1])
    assert answered(server) == EXPECTED
    assert 'sdrpn:reloads_total{model_name="demo",outcome="failed"} 1.0' in server.get("/metrics").text


def test_one_that_cannot_be_opened_changes_nothing(server: Server, bundles: Bundles) -> None:
    def refuse(session: Session) -> None:
        raise RunFailed("there is not enough memory")

    bundles.prepare = refuse
    assert "not enough memory" in reload(server).json()["error"]["message"]
    assert answered(server) == EXPECTED


def test_one_whose_trial_does_not_end_changes_nothing(server: Server, bundles: Bundles, tmp_path: Path) -> None:
    bundles.path = tmp_path / "endless"
    shutil.copytree(bundle_path("demo"), bundles.path)
    make_vision_endless(bundles.path)
    server.service.models._limit = TrialLimit(0.2)
    with ThreadPoolExecutor(1) as threads:
        reloading = threads.submit(reload, server)
        assert answered(server) == EXPECTED
        reply = reloading.result(30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "reload_failed")
    assert "the former one still answers: a graph of the trial ran for longer than 0.2 s" in reply.text
    assert is_closed(bundles.opened[1])
    bundles.path, server.service.models._limit = "demo", TrialLimit(60)
    assert reload(server).json()["generation"] == 2


def test_a_trial_that_cannot_be_ended_is_given_up(server: Server, bundles: Bundles) -> None:
    ends = threading.Event()

    def spoil(session: Session) -> None:
        def endless(*arguments: Any) -> Any:
            ends.wait(30)
            raise RunFailed("the tail graph was waited for")

        session._decoder.run_tail = endless  # type: ignore[method-assign, assignment]

    bundles.prepare = spoil
    server.service.models._limit = TrialLimit(0.2, grace_s=0.2)
    reply = reload(server)
    assert reply.status_code == 422
    assert "and cannot be ended" in reply.json()["error"]["message"]
    assert server.get("/healthz").status_code == 200
    assert answered(server) == EXPECTED
    bundles.prepare, server.service.models._limit = lambda session: None, TrialLimit(60)
    reply = reload(server)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "reload_in_progress")
    assert "a graph of the last reload still runs" in reply.json()["error"]["message"]
    ends.set()
    deadline = time.monotonic() + 20
    while reload(server).status_code == 409:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert is_closed(bundles.opened[1])
    assert answered(server) == EXPECTED


def test_what_is_not_accepted_changes_nothing(bundles: Bundles) -> None:
    def accept(session: Session) -> None:
        raise RunFailed("the store is read-only")

    with bundles() as first, serving(first, ServerOptions(model="demo"), bundles, accept=accept) as running:
        reply = reload(running)
        assert reply.status_code == 422
        assert "the store is read-only" in reply.json()["error"]["message"]
        assert is_closed(bundles.opened[1])


def test_only_one_at_a_time(server: Server, bundles: Bundles) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(session: Session) -> None:
        begun.set()
        go_on.wait(30)

    bundles.prepare = wait
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(reload, server)
        assert begun.wait(30)
        try:
            assert reload(server).status_code == 409
            assert answered(server) == EXPECTED
        finally:
            go_on.set()
        assert first.result(60).status_code == 200


def test_a_server_in_a_program_says_who_can() -> None:
    with Session.open("demo", threads=1) as session, serving(session) as alone:
        assert reload(alone).status_code == 501


def test_a_server_whose_first_trial_does_not_end_says_so(tmp_path: Path) -> None:
    bundle = tmp_path / "endless"
    shutil.copytree(bundle_path("demo"), bundle)
    make_vision_endless(bundle)
    request = ServeRequest(bundle, port=0, threads=1, stuck_after_s=0.2)
    with (
        pytest.raises(RunFailed, match=r"a graph of the trial ran for longer than 0\.2 s, and was ended"),
        server_app(request),
    ):
        pass
