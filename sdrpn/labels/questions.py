"""Questions about images, one JSON object a line. Knows no model.

Either `{"image": "a.jpg", "question": "...", "id": "...", "answer": "..."}`, of which the last two may be left out, or
a line as LLaVA's training data has them: `{"image": ..., "conversations": [{"from": "human", "value": "<image>\\n..."},
{"from": "gpt", "value": ...}, ...]}`, of which the first turn is taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdrpn.errors import BadInput

__all__ = ["Question", "read_questions"]


@dataclass(frozen=True)
class Question:
    """One question about one image."""

    id: str
    image: str  # relative to the folder of images
    text: str
    answer: str | None = None


def read_questions(path: Path) -> list[Question]:
    """Read a JSON Lines file; empty lines are skipped. Raises BadInput, which names the line."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist; expected a file with one JSON object a line: image and question")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason}); expected JSON Lines") from error
    questions = [_question(line, f"{path} line {n}", str(n)) for n, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise BadInput(f"{path} holds no question; expected one JSON object a line: image and question")
    return questions


def _question(line: str, where: str, number: str) -> Question:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON ({error.msg}); expected one object a line") from error
    if not isinstance(record, dict):
        raise BadInput(f"{where} is {type(record).__name__}; expected an object with image and question")
    if "conversations" in record:
        text, answer = _first_turn(record["conversations"], where)
    else:
        text, answer = _text(record, "question", where), record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise BadInput(f"{where}: answer is {answer!r}; expected text")
    return Question(str(record.get("id", number)), _image(record, where), text, answer)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {key} is {value!r}; expected text")
    return value


def _image(record: dict[str, Any], where: str) -> str:
    name = _text(record, "image", where)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{where}: image is {name!r}; expected a path inside the folder of images")
    return name


def _first_turn(turns: object, where: str) -> tuple[str, str | None]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadInput(f"{where}: conversations is no list of turns; expected a question from a human first")
    if turns[0].get("from") != "human":
        raise BadInput(f"{where}: the first turn is from {turns[0].get('from')!r}; expected a question from a human")
    text = _text(turns[0], "value", where).replace("<image>", "").strip()
    return text, turns[1].get("value") if len(turns) > 1 else None
