"""YAML as data that remembers its lines.

The schema is YAML 1.2's core: `true` and `false` are the only truths, dates and `no` are text, `1e-3` is a number,
`012` is twelve. Only plain mappings, lists and scalars are read: no tags, so nothing is ever constructed. A key that
stands twice is reported, and so is a key that is no text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


@dataclass
class Located:
    """The data of one document, the line of each path in it, and what is wrong with it as YAML."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, KeyPath, str]] = field(default_factory=list)

    def line(self, path: KeyPath) -> int | None:
        """The line of a path, or of the nearest thing around it."""
        while path not in self.lines:
            if not path:
                return None
            path = path[:-1]
        return self.lines[path]


class _CoreLoader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2's core schema does."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML looks it up on the class


_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _CoreLoader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)

_SPECIAL: dict[str, str] = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


def load(text: str) -> Located:
    """Read the one document in `text`.

    Raises:
        yaml.YAMLError: it is no YAML, or more than one document.
    """
    located = Located()
    root = yaml.compose(text, Loader=_CoreLoader)
    if root is not None:
        located.data = _read(root, (), located, ())
    return located


def _read(node: yaml.Node, path: KeyPath, located: Located, above: tuple[int, ...]) -> Any:
    line = node.start_mark.line + 1
    located.lines.setdefault(path, line)
    if id(node) in above:
        located.problems.append((line, path, "an alias that contains itself"))
        return None
    if not node.tag.startswith(_TAG) or node.tag.removeprefix(_TAG) not in _READERS:
        located.problems.append((line, path, f"the tag {node.tag} is not allowed; only plain YAML is"))
        return None
    return _READERS[node.tag.removeprefix(_TAG)](node, path, located, (*above, id(node)))


def _mapping(node: yaml.MappingNode, path: KeyPath, located: Located, above: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag != _TAG + "str":
            located.problems.append(
                (line, path, f"the key {key.value if isinstance(key.value, str) else '?'!r} is no text")
            )
        elif key.value in found:
            first = located.lines[(*path, key.value)]
            located.problems.append((line, (*path, key.value), f"the key stands twice; the first is in line {first}"))
        else:
            located.lines[(*path, key.value)] = line
            found[key.value] = _read(value, (*path, key.value), located, above)
    return found


def _sequence(node: yaml.SequenceNode, path: KeyPath, located: Located, above: tuple[int, ...]) -> list[Any]:
    return [_read(item, (*path, index), located, above) for index, item in enumerate(node.value)]


def _integer(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _float(text: str) -> float:
    return float(_SPECIAL.get(text.lower(), text))


def _scalar(convert: Any) -> Any:
    def read(node: yaml.ScalarNode, path: KeyPath, located: Located, above: tuple[int, ...]) -> Any:
        try:
            return convert(node.value)
        except ValueError:  # an explicit tag that its text does not bear out, such as !!int x
            located.problems.append(
                (node.start_mark.line + 1, path, f"{node.value!r} is no {node.tag.removeprefix(_TAG)}")
            )
            return None

    return read


_READERS: dict[str, Any] = {
    "map": _mapping,
    "seq": _sequence,
    "str": _scalar(str),
    "null": _scalar(lambda text: None),
    "bool": _scalar(lambda text: text.lower() == "true"),
    "int": _scalar(_integer),
    "float": _scalar(_float),
}
