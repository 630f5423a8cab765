"""Keys: what identifies an artifact before it is made.

    key = sha256(canonical({stage, version, spec, inputs}))

`spec` has everything that decides the result, with revisions in the place of paths and URLs; `inputs` has the keys of
the artifacts that the stage reads. Nothing that only says how or where it runs is in either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from interp.spec.canonical import canonical_json


def stage_key(stage: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """64 hexadecimal digits.

    Raises:
        SpecError: the spec holds something that has no canonical form.
    """
    text = canonical_json({"stage": stage, "version": version, "spec": dict(spec), "inputs": dict(inputs)})
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two specs, one line each: `fit.lr: 0.001 -> 0.002`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            path = f"{where}.{key}".lstrip(".")
            if key not in old:
                lines.append(f"{path}: only in the new: {_text(new[key])}")
            elif key not in new:
                lines.append(f"{path}: only in the old: {_text(old[key])}")
            else:
                lines += differences(old[key], new[key], path)
        return lines
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        return [
            line for i, (a, b) in enumerate(zip(old, new, strict=True)) for line in differences(a, b, f"{where}[{i}]")
        ]
    return [] if _text(old) == _text(new) else [f"{where}: {_text(old)} -> {_text(new)}"]


def _text(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
