"""Parts of a job, from a text and from a launcher's environment."""

from __future__ import annotations

import pytest

from sdrpn.errors import BadInput
from sdrpn.host.part import WHOLE, Part, part_from_text, part_of_launcher


def test_parts_do_everything_once() -> None:
    for count in (1, 2, 3, 7):
        parts = [Part(number, count) for number in range(1, count + 1)]
        owners = [[part.number for part in parts if part.owns(index)] for index in range(20)]
        assert all(len(owner) == 1 for owner in owners)
    assert WHOLE.is_whole
    assert not Part(1, 2).is_whole


def test_texts() -> None:
    assert part_from_text("2/4") == Part(2, 4)
    assert str(part_from_text("1/1")) == "1/1"


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "a/b", "1/0", "1/2/3", "-1/2", "1/٢", "1/99999999999"])
def test_texts_that_are_no_part(text: str) -> None:
    with pytest.raises(BadInput, match="expected"):
        part_from_text(text)


def test_what_launchers_say() -> None:
    assert part_of_launcher({}) is WHOLE
    assert part_of_launcher({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}) == Part(3, 4, 0)
    assert part_of_launcher({"RANK": "0", "WORLD_SIZE": "1"}) == WHOLE


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}],
)
def test_half_an_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="expected what a launcher sets: unset them, or name the part"):
        part_of_launcher(environment)


def test_every_process_of_a_machine_has_its_gpu() -> None:
    assert Part(4, 4, 1).device("cuda") == "cuda:1"
    assert [Part(4, 4, 1).device(name) for name in ("cpu", "cuda:0")] == ["cpu", "cuda:0"]
    assert Part(4, 4).device("cuda") == "cuda"
