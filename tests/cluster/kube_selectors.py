"""Label and field selectors as the API server reads them: equality, sets, existence; what is none is an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_KEY = r"[A-Za-z0-9][A-Za-z0-9._/-]*"
_VALUE = r"[A-Za-z0-9._-]*"
_SET = re.compile(rf"^({_KEY})\s+(in|notin)\s+\(([^()]*)\)$")
_EQUAL = re.compile(rf"^({_KEY})\s*(==|=|!=)\s*({_VALUE})$")
_EXISTS = re.compile(rf"^(!?)\s*({_KEY})$")

Labels = dict[str, str]


class BadSelector(Exception):
    """A selector that cannot be read."""


def label_matcher(selector: str) -> Callable[[Labels], bool]:
    """Whether labels match all terms of a selector such as `app=x,tier in (a,b),!old`."""
    terms = [_label_term(term.strip()) for term in _split(selector)]
    return lambda labels: all(term(labels) for term in terms)


def _split(selector: str) -> list[str]:
    """At commas that are not in parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", selector) if part.strip()]


def _label_term(term: str) -> Callable[[Labels], bool]:
    if found := _SET.match(term):
        key, operator, inside = found.groups()
        values = {value.strip() for value in inside.split(",")}
        if operator == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(term):
        key, operator, value = found.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.match(term):
        absent, key = found.groups()
        return lambda labels: (key in labels) != bool(absent)
    raise BadSelector(f"unable to parse requirement: {term!r}")


def field_terms(selector: str) -> list[tuple[str, bool, str]]:
    """(field, is equal, value) of each term of a selector such as `metadata.name=x,type!=Normal`."""
    found = []
    for term in filter(None, selector.split(",")):
        field, operator, value = (
            re.match(r"^([^=!]+)(==|=|!=)(.*)$", term).groups()
            if re.search(r"^[^=!]+(==|=|!=)", term)
            else (None, None, None)
        )
        if field is None:
            raise BadSelector(f"invalid selector: {term!r}; can't understand it")
        found.append((field, operator != "!=", value))
    return found


def fields_match(obj: dict[str, Any], terms: list[tuple[str, bool, str]]) -> bool:
    return all((field_at(obj, field) == value) == equal for field, equal, value in terms)


def field_at(obj: dict[str, Any], path: str) -> str:
    """The value at a dotted path; empty where there is none."""
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)
