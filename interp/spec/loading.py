"""Reading a study file: YAML -> Study, or one error that lists everything that is wrong with the file.

Each problem names file and line, the dotted path, the value that was found, what is allowed there, and for a misspelt
key the one that was probably meant. What pydantic reports is translated, since its own paths name members of unions
(`dictionaries.0.trained.activation.topk.k`) that no user wrote.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from interp.errors import InterpError, SpecError
from interp.spec.canonical import canonical_json, key_spec
from interp.spec.complaints import Complaint, translate
from interp.spec.located_yaml import KeyPath, Located, load
from interp.spec.study import Study

__all__ = ["Problem", "StudyFileError", "canonical_json", "key_spec", "load_study", "parse_study"]

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


class StudyFileError(SpecError):
    """A study file that is refused, with every problem that was found in it."""

    def __init__(self, problems: tuple[Problem, ...]):
        self.problems = problems
        count = len(problems)
        head = [f"{problems[0].file}: {count} problems"] if count > 1 else []
        super().__init__("\n".join([*head, *map(str, problems)]))

    def __reduce__(self) -> tuple[object, ...]:
        return StudyFileError, (self.problems,)


def load_study(path: str | Path) -> Study:
    """The study in a YAML file.

    Raises:
        SpecError: the file cannot be read, is no YAML, or says something that is not allowed.
    """
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{file} is not UTF-8", value=str(error), expected="a text file in UTF-8") from error
    except OSError as error:
        remedy = "check the path of the study file"
        raise SpecError(
            f"{file} cannot be read: {error.strerror}", expected="a study in YAML", remedy=remedy
        ) from error
    return parse_study(text, file)


def parse_study(text: str, file: str = "<text>") -> Study:
    """The study in a YAML text; `file` is what messages call it.

    Raises:
        SpecError: as `load_study`.
    """
    try:
        located = load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        what = "this is no YAML: " + ", ".join(part for part in (error.context, error.problem) if part)
        remedy = "use spaces, not tabs, and keep the indentation of one level alike"
        raise StudyFileError((Problem(file, line, "", what, remedy=remedy),)) from error
    except yaml.YAMLError as error:
        raise StudyFileError((Problem(file, None, "", f"this is no YAML: {error}"),)) from error
    problems = [Problem(file, line, dotted(where), what) for line, where, what in located.problems]
    try:
        study = Study.model_validate(located.data)
    except ValidationError as error:
        problems += [_problem(complaint, located, file) for complaint in translate(error, located.data)]
    if problems:
        raise StudyFileError(tuple(sorted(problems, key=lambda p: (p.line is None, p.line or 0))))
    return study


def study_of(data: dict[str, Any], source: str) -> Study:
    """The study in plain data; `source` is what messages call it.

    Raises:
        SpecError: as `load_study`, without lines.
    """
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        problems = (_placed(complaint, source, None) for complaint in translate(error, data))
        raise StudyFileError(tuple(problems)) from error


def dotted(path: KeyPath) -> str:
    """`dictionaries[0].activation.k`"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _problem(complaint: Complaint, located: Located, file: str) -> Problem:
    return _placed(complaint, file, located.line(complaint.path))


def _placed(complaint: Complaint, file: str, line: int | None) -> Problem:
    value = None if complaint.value is None else _short(complaint.value)
    return Problem(file, line, dotted(complaint.path), complaint.what, value, complaint.expected, complaint.remedy)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
