"""Reading a study file: YAML -> Study, or one error that lists everything that is wrong with the file.

Each problem names file and line, the dotted path, the value that was found, what is allowed there, and for a misspelt
key the one that was probably meant. What pydantic reports is translated, since its own paths name members of unions
(`dictionaries.0.trained.activation.topk.k`) that no user wrote. Nor did the user write the dictionaries that a sweep
makes: what is wrong with one of them is told of the list, or of the value in it, that it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from interp.errors import InterpError, SpecError
from interp.spec.canonical import canonical_json, key_spec
from interp.spec.complaints import UNKNOWN_KEY, Complaint, translate
from interp.spec.located_yaml import KeyPath, load
from interp.spec.study import Study
from interp.spec.sweep import Sweep, expand

__all__ = ["Problem", "StudyFileError", "canonical_json", "key_spec", "load_study", "parse_study"]

T = TypeVar("T")

_SHOWN = 120
"""Characters of an offending value that a message repeats."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a study file."""

    file: str
    line: int | None
    path: str
    what: str
    value: str | None = None
    expected: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        head = f"{place}: {self.path}: {self.what}" if self.path else f"{place}: {self.what}"
        return str(InterpError(head, value=self.value, expected=self.expected, remedy=self.remedy))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class FileError(SpecError):
    """A file that is refused, with every problem that was found in it."""

    def __init__(self, problems: tuple[Problem, ...]):
        self.problems = problems
        count = len(problems)
        head = [f"{problems[0].file}: {count} problems"] if count > 1 else []
        super().__init__("\n".join([*head, *map(str, problems)]))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


class StudyFileError(FileError):
    """A study file that is refused."""


def load_study(path: str | Path) -> Study:
    """The study in a YAML file.

    Raises:
        SpecError: the file cannot be read, is no YAML, or says something that is not allowed.
    """
    return parse_study(text_of(path, "study"), str(path))


def text_of(path: str | Path, what: str) -> str:
    """The text of a file that is said to be a `what`.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8", value=str(error), expected="a text file in UTF-8") from error
    except OSError as error:
        remedy = f"check the path of the {what} file"
        raise SpecError(
            f"{path} cannot be read: {error.strerror}", expected=f"a {what} in YAML", remedy=remedy
        ) from error


def parse_study(text: str, file: str = "<text>") -> Study:
    """The study in a YAML text; `file` is what messages call it.

    Raises:
        SpecError: as `load_study`.
    """
    return parse(text, file, _validated, StudyFileError)


def parse(
    text: str, file: str, validated: Callable[[Any], tuple[T | None, list[Complaint]]], refused: type[FileError]
) -> T:
    """What a YAML text describes.

    Args:
        validated: makes it of plain data, or says what is wrong.

    Raises:
        FileError: of the kind `refused`, with every problem and its line.
    """
    try:
        located = load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        what = "this is no YAML: " + ", ".join(part for part in (error.context, error.problem) if part)
        remedy = "use spaces, not tabs, and keep the indentation of one level alike"
        raise refused((Problem(file, line, "", what, remedy=remedy),)) from error
    except yaml.YAMLError as error:
        raise refused((Problem(file, None, "", f"this is no YAML: {error}"),)) from error
    problems = [Problem(file, line, dotted(where), what) for line, where, what in located.problems]
    found, complaints = validated(located.data)
    problems += [placed(complaint, file, located.line(complaint.path)) for complaint in complaints]
    if found is None or problems:
        raise refused(tuple(sorted(problems, key=lambda p: (p.line is None, p.line or 0))))
    return found


def study_of(data: dict[str, Any], source: str) -> Study:
    """The study in plain data; `source` is what messages call it.

    Raises:
        SpecError: as `load_study`, without lines.
    """
    study, complaints = _validated(data)
    if study is None:
        raise StudyFileError(tuple(placed(complaint, source, None) for complaint in complaints))
    return study


def dotted(path: KeyPath) -> str:
    """`dictionaries[0].activation.k`"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _validated(data: Any) -> tuple[Study | None, list[Complaint]]:
    """The study in plain data, or every complaint about it; paths are those of the data, before sweeps are expanded."""
    sweep = expand(data)
    found = [Complaint(path, what) for path, what in sweep.problems]
    study = None
    try:
        study = Study.model_validate(sweep.data)
    except ValidationError as error:
        told = {complaint.path for complaint in found}
        complaints = _as_written(translate(error, sweep.data), sweep)
        found += [complaint for complaint in complaints if complaint.path not in told]
    return (None if found else study), found


def _as_written(complaints: Iterable[Complaint], sweep: Sweep) -> Iterator[Complaint]:
    """Complaints about what the user wrote, each once: dictionaries of one sweep share most of what is wrong."""
    seen: set[str] = set()
    for complaint in complaints:
        origin = sweep.origin(complaint.path)
        own = replace(complaint, path=sweep.path(complaint.path, key=complaint.what == UNKNOWN_KEY))
        if origin is not None and origin.values and own.path[2:] == ("name",) and own.value is not None:
            own = replace(own, value=origin.name)
        elif origin is not None and own.what == UNKNOWN_KEY and complaint.path[2:] in origin.values:
            own = replace(own, value=None)  # the list's, not one of its values
        if repr(own) not in seen:
            seen.add(repr(own))
            yield own


def placed(complaint: Complaint, file: str, line: int | None) -> Problem:
    """A complaint with its place in a file."""
    value = None if complaint.value is None else _short(complaint.value)
    return Problem(file, line, dotted(complaint.path), complaint.what, value, complaint.expected, complaint.remedy)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
