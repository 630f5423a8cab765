"""No secret leaves the driver: values of variables that look like secrets are replaced in all that it writes.

A cluster hands secrets to the driver as environment variables, and they turn up where nobody put them: in an address,
in what a client library says of a refused request. What counts as a secret is decided by the variable's name
(`interp.cluster.profile.SECRET_LIKE`); values of fewer than `SHORTEST` characters are not replaced, since they would be
found in words that are no secrets. Credentials in an address are secret whatever the variable is called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

from interp.cluster.profile import SECRET_LIKE, USER_IN_URL

SHORTEST = 6


class Redactor:
    """Replaces what was a secret in the environment when it was made, or `refresh`ed since."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look at the environment again. What was a secret stays one."""
        names = dict(self._names)
        for name, value in os.environ.items():
            if SECRET_LIKE.search(name):
                names |= dict.fromkeys(_forms(value), name)
            for user in USER_IN_URL.findall(value):
                # The name in front of the password is none; what has no password may be a token.
                names |= dict.fromkeys(_forms(user.partition(":")[2] or user), name)
        longest_first = sorted(names, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first))) if names else None
        self._names, self._pattern = names, pattern

    def text(self, text: str) -> str:
        """The text with `[redacted NAME]` in place of the value of NAME."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: f"[redacted {self._names[found.group()]}]", text)

    def tree(self, value: Any) -> Any:
        """The same for all texts of a JSON document, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.tree(name): self.tree(each) for name, each in value.items()}
        if isinstance(value, Sequence):
            return [self.tree(each) for each in value]
        return value


def _forms(value: str) -> set[str]:
    """How a value may be written: as it is, in an address, in a `repr`, and each line of it, as keys in files have."""
    whole = {value, value.strip(), *value.split("\n")}
    forms = {form for each in whole for form in (each, quote(each, safe=""), quote_plus(each), repr(each)[1:-1])}
    return {form.strip() for form in forms if len(form.strip()) >= SHORTEST}
