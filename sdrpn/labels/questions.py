"""Questions about images, one JSON object per line or all in one list. Knows no model.

An object is one of

- `{"image": "a.jpg", "question": "...", "id": "...", "answer": "..."}`, where the last two are optional;
- an entry of LLaVA's training data, `{"image": ..., "conversations": [{"from": "human", "value": "<image>\\n..."},
  {"from": "gpt", "value": ...}, ...]}`, whose first turn is used; those without an image are skipped;
- a line of LLaVA's question files, `{"question_id": 1, "image": ..., "text": ...}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput
from sdrpn.host.json_files import read_numbered_objects
from sdrpn.images.names import leads_out

__all__ = ["DataQuestion", "questions_provenance", "read_questions"]


@dataclass(frozen=True)
class DataQuestion:
    """One question about one image."""

    id: str
    image: str  # relative to the folder of images
    text: str
    answer: str | None = None


def questions_provenance(questions: Sequence[DataQuestion]) -> dict[str, Any]:
    """How many there are, and their digest: what is made of other questions differs from what is made of these."""
    data = hashlib.sha256(repr(tuple(questions)).encode("utf-8", "surrogatepass")).hexdigest()
    return {"questions": len(questions), "questions_sha256": data}


def read_questions(path: Path) -> list[DataQuestion]:
    """Read a file of questions. Raises BadInput, which names the line."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist; expected a file with one JSON object per line: image and question")
    rows = enumerate(read_numbered_objects(path), start=1)
    questions = [_question(row, where, str(number)) for number, (where, row) in rows if not _is_text_only(row)]
    if not questions:
        raise BadInput(f"{path} holds no question; expected one JSON object per line: image and question")
    return questions


def _is_text_only(record: dict[str, Any]) -> bool:
    """Whether it is a conversation without an image: LLaVA's training data has tens of thousands of them."""
    return "conversations" in record and record.get("image") is None


def _question(record: dict[str, Any], where: str, number: str) -> DataQuestion:
    if "conversations" in record:
        text, answer = _first_turn(record["conversations"], where)
    else:
        key = "text" if "question" not in record and "text" in record else "question"
        text, answer = _text(record, key, where), record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise BadInput(f"{where}: answer is {answer!r}; expected text")
    return DataQuestion(str(record.get("id", record.get("question_id", number))), _image(record, where), text, answer)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {key} is {value!r}; expected text")
    return value


def _image(record: dict[str, Any], where: str) -> str:
    name = _text(record, "image", where)
    if leads_out(name):
        raise BadInput(f"{where}: image is {name!r}; expected a path inside the folder of images")
    return name


def _first_turn(turns: object, where: str) -> tuple[str, str | None]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadInput(f"{where}: conversations is not a list of turns; expected a question from a human first")
    if turns[0].get("from") != "human":
        raise BadInput(f"{where}: the first turn is from {turns[0].get('from')!r}; expected a question from a human")
    text = _text(turns[0], "value", where).replace("<image>", "").strip()
    return text, turns[1].get("value") if len(turns) > 1 else None
