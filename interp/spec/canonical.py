"""One text for one value: what keys are hashed from.

The text is JSON with sorted keys, no spaces, and ASCII escapes only. A value that JSON could write in two ways, or that
two values could share, is decided here or is an error; nothing falls back to `str`:

    int and float differ         1 is `1` and 1.0 is `1.0`. A field of a study has one type, so the two never mix.
    -0.0 is written as `0.0`     they are equal, and no stage tells them apart
    floats                       as `repr`: the shortest digits that give the same double
    nan, inf                     an error
    tuple and list               the same: a JSON array
    keys                         text only, sorted by code point
    anything else                an error, subclasses included (an enum, a numpy scalar, a path)
"""

from __future__ import annotations

import json
import math
from typing import Any

from interp.errors import SpecError
from interp.spec.base import SpecModel


def canonical_json(obj: Any) -> str:
    """The one text of `obj`.

    Raises:
        SpecError: it holds something that has no canonical form; the message says where.
    """
    return _text(obj, "$")


def key_spec(model: SpecModel) -> dict[str, Any]:
    """What of a spec may enter a key: every field but those marked EXECUTION, at every depth."""
    return {
        name: _plain(getattr(model, name))
        for name, field in type(model).model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("interp") == "execution")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, SpecModel):
        return key_spec(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _text(value: Any, where: str) -> str:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return json.dumps(value)
    if kind is float and math.isfinite(value):
        return repr(value + 0.0)  # -0.0 + 0.0 is 0.0
    if kind in (list, tuple):
        return "[" + ",".join(_text(item, f"{where}[{i}]") for i, item in enumerate(value)) + "]"
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise _no_form(key, f"a key of {where}", "text")
        return "{" + ",".join(f"{json.dumps(k)}:{_text(value[k], f'{where}.{k}')}" for k in sorted(value)) + "}"
    raise _no_form(value, where, "text, int, bool, null, a finite float, a list or a mapping")


def _no_form(value: Any, where: str, expected: str) -> SpecError:
    return SpecError(
        f"{where} has no canonical form, so no key can be made of it",
        value=f"{value!r} ({type(value).__name__})",
        expected=expected,
    )
