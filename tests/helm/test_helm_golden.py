"""What each values file becomes, written down: a change of the chart shows as a change of these files.

    INTERP_WRITE_GOLDEN=1 python -m pytest tests/helm/test_helm_golden.py     writes them anew

Random values and the scripts' texts, which are files of the chart themselves, are left out.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import yaml
from chart_rendering import VALUES, Object, rendered

GOLDEN = Path(__file__).parent / "golden"
WRITE = os.environ.get("INTERP_WRITE_GOLDEN") == "1"


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_renders_as_written_down(name: str) -> None:
    objects = [_shown(one) for one in rendered(name).objects]
    text = yaml.safe_dump_all(objects, sort_keys=True, width=120, explicit_start=True)
    path = GOLDEN / f"{name}.yaml"
    if WRITE:
        path.write_text(text)
    assert path.read_text() == text, "if this is meant: INTERP_WRITE_GOLDEN=1"


def test_there_is_no_golden_file_of_values_that_are_gone() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(VALUES)


def _shown(one: Object) -> Object:
    if one["kind"] == "Secret":
        return one | {"data": dict.fromkeys(one["data"], "(made)")}
    if one["kind"] == "ConfigMap":
        return one | {"data": {key: _digest(text) for key, text in one["data"].items()}}
    return one


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
