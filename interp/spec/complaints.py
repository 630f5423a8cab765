"""What pydantic finds wrong with a study (or another file of such models), said in the file's own terms.

pydantic locates an error by field names, list indices and the tags of unions. `_walk` follows such a location through
the annotations of the models: it drops the tags, and it ends at the models whose fields are the keys allowed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic.fields import FieldInfo

from interp.spec.base import Disagreement, SpecModel
from interp.spec.located_yaml import KeyPath
from interp.spec.study import Study

UNKNOWN_KEY = "unknown key"
"""What is wrong where a key is, whatever its value."""

_NEAR = 0.7
"""How alike two words must be for one to be suggested: `dtyp` finds dtype, `gpu` does not find cpu."""


@dataclass(frozen=True)
class Complaint:
    """One error, at a path of keys that the file has (or lacks, for a missing key)."""

    path: KeyPath
    what: str
    value: Any = None
    expected: str | None = None
    remedy: str | None = None


def translate(error: ValidationError, data: Any, root: type[SpecModel] = Study) -> list[Complaint]:
    """Every complaint in a ValidationError of `Study`, or of another model, in the file's terms."""
    if data is None:
        return [Complaint((), "the file is empty", expected=f"a mapping of {_listed(_keys([root]))}")]
    found: list[Complaint] = []
    for entry in error.errors(include_url=False):
        if entry["type"] == "too_short" and len(entry["input"]) >= entry["ctx"]["min_length"]:
            continue  # its entries are wrong, which is told of each
        inner = entry.get("ctx", {}).get("error")
        if isinstance(inner, Disagreement):
            above = _walk(entry["loc"], root).path  # of the part whose own parts disagree
            found += [Complaint((*above, *at), what, _at(data, (*above, *at))) for at, what in inner.problems]
        else:
            found.append(_complaint(dict(entry), _walk(entry["loc"], root)))
    return found


def _complaint(entry: dict[str, Any], place: _Place) -> Complaint:
    kind, context, value, path = entry["type"], entry.get("ctx", {}), entry["input"], place.path
    if kind == "missing" and isinstance(path[-1], int):
        return Complaint(path[:-1], "this is too short", list(value), f"a list of at least {path[-1] + 1}")
    if kind == "missing":
        described = _description(path[-1], place.around)
        return Complaint(path, "this key is required", expected=described, remedy=f"add the key {path[-1]}")
    if kind == "extra_forbidden":
        return _unknown_key(path, value, _keys(place.around))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [tag for model in place.here for _, tag in _tagged_models(model) if tag]
        return _choice((*path, context["discriminator"].strip("'")), context.get("tag"), tags)
    if kind == "value_error":
        return Complaint(path, str(context["error"]), None if isinstance(value, (dict, list)) else value)
    if kind == "credentials":  # whose value is not repeated
        elsewhere = "put them into the environment or an AWS profile: they stay out of plans and logs there"
        return Complaint(path, entry["msg"], None, "a path, or a URL without '@'", elsewhere)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return Complaint(path, "a mapping belongs here", value, f"a mapping of {_listed(_keys(place.here))}")
    if kind == "literal_error":
        return _choice(
            path,
            "null" if value is None else value,
            context["expected"].replace(" or ", ", ").replace("'", "").split(", "),
        )
    if "choices" in context:  # a union whose members have no tag in common
        shown = "null" if value is None else value
        return Complaint(path, "this is not allowed", shown, entry["msg"], _meant(value, context["choices"]))
    expected, remedy = _expectation(kind, context, value)
    return Complaint(path, "this is not allowed", "null" if value is None else value, expected or entry["msg"], remedy)


def _choice(path: KeyPath, value: Any, allowed: list[str]) -> Complaint:
    if value is None:
        return Complaint(path, "this key is required", expected=f"one of {_listed(allowed)}")
    if len(allowed) == 1:
        return Complaint(path, "this is not allowed", value, allowed[0])
    return Complaint(path, "this is not allowed", value, f"one of {_listed(allowed)}", _meant(value, allowed))


def _meant(value: Any, allowed: Sequence[str]) -> str | None:
    """The choice that a word, or a key of a mapping, is nearly."""
    words = [str(word) for word in value] if isinstance(value, dict) else [str(value)]
    near = [match for word in words for match in get_close_matches(word, allowed, n=1, cutoff=_NEAR)]
    return f"did you mean {near[0]}?" if near else None


def _unknown_key(path: KeyPath, value: Any, allowed: list[str]) -> Complaint:
    near = get_close_matches(str(path[-1]), allowed, n=1, cutoff=_NEAR)
    remedy = f"did you mean {near[0]}?" if near else "remove the key; nothing is accepted and ignored"
    return Complaint(path, UNKNOWN_KEY, value, f"one of {_listed(allowed)}", remedy)


def _expectation(kind: str, context: dict[str, Any], value: Any) -> tuple[str | None, str | None]:
    """What a field takes, by the type of pydantic's error; None where its own message is the best there is."""
    scalar = isinstance(value, (bool, int, float))
    fixed: dict[str, tuple[str, str | None]] = {
        "int_parsing": ("a whole number; a count may say 10K, 1.5M or 2G", None),
        "int_type": ("a whole number; a count may say 10K, 1.5M or 2G", None),
        "int_from_float": ("a whole number", None),
        "float_parsing": ("a number", None),
        "float_type": ("a number", None),
        "finite_number": ("a finite number", None),
        "bool_parsing": ("true or false", None),
        "bool_type": ("true or false", None),
        "string_type": ("text", "put it in quotes" if scalar else None),
        "string_too_short": ("text that is not empty", None),
        "tuple_type": ("a list", "write it as [a, b] or as lines that begin with '- '"),
        "too_short": (f"a list of at least {context.get('min_length')}", None),
        "too_long": (f"a list of at most {context.get('max_length')}", None),
    }
    if kind in fixed:
        return fixed[kind]
    if kind == "string_pattern_mismatch":
        return f"text of the pattern {context['pattern']}", None
    for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if name in context:
            return f"{words} {context[name]}", None
    return None, None


@dataclass(frozen=True)
class _Place:
    """Where an error is: the keys that lead there, and what may stand around it and at it."""

    path: KeyPath
    around: tuple[type[SpecModel], ...]
    here: tuple[type[SpecModel], ...]


def _walk(location: tuple[str | int, ...], root: type[SpecModel]) -> _Place:
    path: list[str | int] = []
    around: tuple[type[SpecModel], ...] = ()
    here: dict[type[SpecModel], str | None] = {root: None}
    for step in location:
        if isinstance(step, str) and step.startswith("<"):  # a tag that no key can be mistaken for
            here = {model: None for model, tag in here.items() if tag == step}
            continue
        field = next((found for model in here if (found := _field(model, step))), None)
        if field is not None:
            around, here = tuple(here), dict(_tagged_models(field.annotation))
        elif isinstance(step, str) and step in here.values():
            here = {model: None for model, tag in here.items() if tag == step}
            continue
        elif isinstance(step, str) and not here:
            continue  # the tag of a union without models, such as that of a list and a text
        elif isinstance(step, str):
            around, here = tuple(here), {}  # an unknown key
        path.append(step)
    return _Place(tuple(path), around, tuple(here))


def _field(model: type[SpecModel], key: str | int) -> FieldInfo | None:
    return next((field for name, field in model.model_fields.items() if key == (field.alias or name)), None)


def _tagged_models(annotation: Any, tag: str | None = None) -> Iterator[tuple[type[SpecModel], str | None]]:
    """The models in an annotation, each with the tag that pydantic's locations call it by."""
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        kind = annotation.model_fields.get("type")
        yield annotation, tag or (get_args(kind.annotation)[0] if kind else None)
        return
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        named = [part.tag for part in inner[1:] if isinstance(part, Tag)]
        tag, inner = (named[0] if named else tag), inner[:1]
    for part in inner:
        yield from _tagged_models(part, tag)


def _keys(models: Iterable[type[SpecModel]]) -> list[str]:
    """The keys that at least one of the models has, in their order."""
    return list(dict.fromkeys(f.alias or name for model in models for name, f in model.model_fields.items()))


def _description(key: str | int, models: Iterable[type[SpecModel]]) -> str | None:
    return next((field.description for model in models if (field := _field(model, key))), None)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _at(data: Any, path: KeyPath) -> Any:
    """The value at a path; None where a default stood, or where a mapping or list does."""
    for step in path:
        inside = isinstance(data, list) or (isinstance(data, dict) and step in data)
        data = data[step] if inside else None
    return None if isinstance(data, (dict, list)) else data
