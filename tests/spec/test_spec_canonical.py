"""A key is canonical or an error: one value has one text, two values never share one."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import Any

import pytest

from interp.errors import SpecError
from interp.spec.base import EXECUTION
from interp.spec.canonical import canonical_json, key_spec
from interp.spec.study import FitSpec
from interp.spec.trace import TraceSpec


class Name(str):
    pass


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "é\n"]}, '{"a":[true,null,"\\u00e9\\n"],"b":1}'),
        ((1, (2,)), "[1,[2]]"),
        (1, "1"),
        (1.0, "1.0"),
        (-0.0, "0.0"),
        (1e-5, "1e-05"),
        (0.1, "0.1"),
        (10**30, "1" + "0" * 30),
        ({}, "{}"),
    ],
)
def test_the_text_of_a_value(value: Any, text: str) -> None:
    assert canonical_json(value) == text
    if not isinstance(value, tuple):
        assert json.loads(text) == value


def test_order_of_keys_does_not_matter_and_order_of_lists_does() -> None:
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    assert canonical_json([1, 2]) != canonical_json([2, 1])


def test_values_that_python_calls_equal_but_are_of_two_types_differ() -> None:
    assert len({canonical_json(value) for value in (1, 1.0, True, "1")}) == 4


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, {1: 2}, {"a": {None: 1}}, {1, 2}, b"x", Path("x"), Name("x"), Number.ONE, 1j, object()],
)
def test_what_has_no_canonical_form_is_an_error(value: Any) -> None:
    with pytest.raises(SpecError, match="no canonical form"):
        canonical_json({"outer": [value]})


def test_the_error_says_where() -> None:
    with pytest.raises(SpecError, match=r"\$\.fit\.lr\[1\]"):
        canonical_json({"fit": {"lr": [1, math.nan]}})


def test_execution_fields_are_left_out_at_every_depth() -> None:
    fit = key_spec(FitSpec())
    assert not {"workers", "harvesters", "checkpoint_every", "device"} & set(fit)
    assert {"batch_tokens", "lr", "normalize"} <= set(fit)
    trace = key_spec(TraceSpec(prompts=("x",)))
    assert not {"actors", "batch", "memory"} & set(trace)
    assert trace["prune"] == {"nodes": 0.8, "edges": 0.98}
    assert trace["prompts"] == ["x"]


def test_the_mark_of_an_execution_field_is_what_key_spec_looks_for() -> None:
    marked = {name for name, field in FitSpec.model_fields.items() if field.json_schema_extra == EXECUTION}
    assert marked == set(FitSpec.model_fields) - set(key_spec(FitSpec()))
