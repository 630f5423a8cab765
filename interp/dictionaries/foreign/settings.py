"""The JSON beside another program's weights, asked for what is needed: every complaint names file, key and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import DictionaryError


@dataclass(frozen=True)
class Settings:
    """What one file says, or one part of it."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, remedy: str = "copy it here: it says what the weights are") -> Settings:
        """A file that holds one object.

        Raises:
            DictionaryError: it is not there, or no JSON, or something else than an object.
        """
        if not path.is_file():
            raise DictionaryError("there is no config beside the weights", value=str(path), remedy=remedy)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DictionaryError(f"this config cannot be read: {path}", value=str(error), expected="JSON") from error
        if not isinstance(content, dict):
            raise DictionaryError(f"this config is no mapping: {path}", value=content, expected="keys and values")
        return cls(path, content)

    def part(self, key: str) -> Settings:
        """The object under a key; empty when absent."""
        value = self.content.get(key)
        if not isinstance(value, dict | None):
            raise self.wrong(key, "keys and values")
        return Settings(self.path, value or {})

    def get(self, key: str) -> Any:
        return self.content.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.content.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        """A text, or None where the key is absent or null."""
        return None if self.content.get(key) is None else self.text(key)

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 1; empty when absent."""
        value = self.content.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in value):
            raise self.wrong(key, "a list of whole numbers of at least 1")
        return tuple(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.content.get(key)
        if not isinstance(value, bool | None):
            raise self.wrong(key, "true or false")
        return default if value is None else value

    def count(self, key: str, remedy: str | None = None) -> int:
        """A whole number of at least 1."""
        value = self.content.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a whole number of at least 1", remedy)
        return value

    def require(self, key: str, found: int) -> None:
        """Refuse a number that is not that of the weights, where the file has the key."""
        if self.content.get(key) not in (None, 0, found):
            raise self.wrong(key, f"{found}, as the weights have")

    def wrong(self, key: str, expected: str, remedy: str | None = None) -> DictionaryError:
        value = self.content.get(key)
        return DictionaryError(
            f"{key} is not as it should be: {self.path}",
            value="nothing" if value is None else value,
            expected=expected,
            remedy=remedy,
        )
