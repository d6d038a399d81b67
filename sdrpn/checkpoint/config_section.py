"""Read a checkpoint's JSON files, keeping the place of every entry for messages. Knows no entry by name."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.checkpoint.model_file import MAX_JSON_BYTES, parsed_json, read_small_file, short
from sdrpn.errors import BadCheckpoint, BadInput

__all__ = ["RANDOM_WEIGHTS", "ConfigSection", "read_config", "read_optional_config", "read_text_file"]

# The entry of config.json that says that nothing of the weights was trained.
RANDOM_WEIGHTS = "random_weights"
_MOST = 2**53  # float64 represents every integer up to here
# Shows entries of any depth and length, shortened to fit a line.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100


@dataclass(frozen=True)
class ConfigSection:
    """A JSON object and its place in the file, for messages. `null` counts as absent, as transformers writes it."""

    values: dict[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """The value of an entry that is a whole number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST:
            raise self.wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        """The value of an entry that is a finite number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, value, "a number")
        if not -_MOST <= value <= _MOST:  # JSON has NaN and Infinity, too
            raise self.wrong(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """The value of an entry that is true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def section(self, key: str, default: dict[str, Any] | None = None) -> ConfigSection:
        """The nested object of an entry."""
        value = self.get(key, {} if default is None else default)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigSection(value, f"{self.where}: {key}")

    def require(self, key: str, *supported: object, default: object = None) -> None:
        """Refuse all but the supported values; `default` is the value when absent (None: absence is supported)."""
        value = self.get(key, default)
        if value is not None and value not in supported:
            choices = " or ".join(json.dumps(choice) for choice in supported)
            raise BadCheckpoint(f"{self.where}: {key} is {_as_json(value)}, which is not supported; expected {choices}")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Prefix errors of a spec's own checks with the name of the config file, which the spec does not know."""
        try:
            yield
        except BadCheckpoint:
            raise
        except BadInput as error:
            raise BadCheckpoint(f"{self.where}: {error}") from error

    def wrong(self, key: str, value: object, expected: str) -> BadCheckpoint:
        """The error for an entry of a wrong type or value."""
        found = "missing" if value is None else _SHOWN.repr(value)
        return BadCheckpoint(f"{self.where}: {key} is {found}; expected {expected}")


def read_config(path: Path, most_bytes: int = MAX_JSON_BYTES) -> ConfigSection:
    """Read a required JSON file. Raises BadCheckpoint where it is missing or not a JSON object."""
    return ConfigSection(parsed_json(read_small_file(path, most_bytes), str(path)), str(path))


def read_text_file(path: Path) -> str:
    """Read a text file of a checkpoint, without its byte-order mark. Raises BadCheckpoint for other files."""
    try:
        return read_small_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"{path} is not UTF-8 text ({error.reason}); download it again") from error


def read_optional_config(path: Path, most_bytes: int = MAX_JSON_BYTES) -> ConfigSection:
    """Read an optional JSON file; a missing one counts as an empty object. A pipe or a broken link is an error."""
    return read_config(path, most_bytes) if os.path.lexists(path) else ConfigSection({}, str(path))


def _as_json(value: object) -> str:
    try:
        return short(json.dumps(value))
    except RecursionError:
        return "too deeply nested"
