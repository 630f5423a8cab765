"""A Dockerfile as data, and what its context holds: enough of both to check an image where none can be built.

A file is instructions; those from one FROM to the next are a stage. Lines that end with the escape character go on,
with comments and empty lines in between left out, as Docker does it; a heredoc's lines belong to the instruction
before. ARGs before the first FROM can stand in FROMs only.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HEREDOC = re.compile(r"<<-?([\"']?)(\w+)\1")
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S+))?\s*")
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?([-+])([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in upper case.
        value: what follows its flags, with continued lines joined by a blank.
        line: where it begins, from 1.
        heredocs: texts that were given with it.
    """

    name: str
    value: str
    line: int
    flags: tuple[tuple[str, str], ...] = ()
    heredocs: tuple[str, ...] = ()

    def flag(self, name: str) -> str | None:
        return dict(self.flags).get(name)

    @property
    def exec_form(self) -> list[str] | None:
        """The words of a JSON array; None in the shell form."""
        try:
            words = json.loads(self.value)
        except ValueError:
            return None
        return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None

    @property
    def words(self) -> list[str]:
        return self.exec_form or shlex.split(self.value)

    @property
    def script(self) -> str:
        """What a RUN runs: its line and its heredocs."""
        return "\n".join([self.value, *self.heredocs])

    @property
    def pairs(self) -> dict[str, str]:
        """The names and values of ARG, ENV and LABEL; a name without a value has the empty one."""
        words = shlex.split(self.value)
        if self.name in ("ENV", "LABEL") and words and "=" not in words[0]:
            return {words[0]: " ".join(words[1:])}
        return {name: value for name, _, value in (word.partition("=") for word in words)}


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    line: int
    instructions: tuple[Instruction, ...]

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]


@dataclass(frozen=True)
class Dockerfile:
    """Attributes: arguments: the ARGs before the first FROM, with their defaults."""

    arguments: Mapping[str, str]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage | None:
        """By its name, or by its number."""
        for index, stage in enumerate(self.stages):
            if name in (stage.name, str(index)):
                return stage
        return None

    def behind(self, stage: Stage) -> list[Stage]:
        """The stages whose layers this one has: its own, and those that it is made FROM."""
        base = next((each for each in self.stages if each.name == stage.base and each is not stage), None)
        return [stage] if base is None else [stage, *self.behind(base)]


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`text` with $NAME, ${NAME}, ${NAME:-default} and ${NAME:+other} filled in; what is not known becomes empty."""

    def fill(match: re.Match[str]) -> str:
        value = values.get(match[1] or match[4], "")
        if match[2] == "-":
            return value or match[3]
        return (match[3] if value else "") if match[2] == "+" else value

    return _VARIABLE.sub(fill, text)


def parse(text: str) -> Dockerfile:
    """
    Raises:
        ValueError: there is no FROM, or something stands before it.
    """
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for each in _instructions(text):
        if each.name == "FROM":
            base, *rest = each.value.split()
            name = rest[1] if len(rest) == 2 and rest[0].upper() == "AS" else ""
            stages.append(Stage(name, substitute(base, arguments), each.line, ()))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(last.name, last.base, last.line, (*last.instructions, each))
        elif each.name == "ARG":
            arguments |= {name: substitute(value, arguments) for name, value in each.pairs.items()}
        else:
            raise ValueError(f"line {each.line}: {each.name} stands before the first FROM")
    if not stages:
        raise ValueError("there is no FROM")
    return Dockerfile(arguments, tuple(stages))


def _instructions(text: str) -> list[Instruction]:
    escape = "\\"
    if directive := re.match(r"(?:#\s*\w+\s*=.*\n)*#\s*escape\s*=\s*(\S)", text, re.IGNORECASE):
        escape = directive[1]
    lines = text.splitlines()
    found: list[Instruction] = []
    at = 0
    while at < len(lines):
        start, parts = at, []
        while at < len(lines):
            line = lines[at].strip()
            at += 1
            if not line or line.startswith("#"):
                if not parts:
                    break
                continue
            parts.append(line.removesuffix(escape).strip())
            if not line.endswith(escape):
                break
        if not parts:
            continue
        name, _, value = " ".join(parts).partition(" ")
        flags, value = _flags(value.strip())
        heredocs = []
        for _, word in _HEREDOC.findall(value) if name.upper() in ("RUN", "COPY", "ADD") else ():
            body = []
            while at < len(lines) and lines[at].strip() != word:
                body.append(lines[at])
                at += 1
            at += 1
            heredocs.append("\n".join(body))
        found.append(Instruction(name.upper(), value, start + 1, flags, tuple(heredocs)))
    return found


def _flags(value: str) -> tuple[tuple[tuple[str, str], ...], str]:
    flags = []
    while match := _FLAG.match(value):
        flags.append((match[1], match[2] or ""))
        value = value[match.end() :]
    return tuple(flags), value


def context_files(root: Path) -> list[str]:
    """The files below `root` that .dockerignore lets through: of its patterns, the last one that fits decides."""
    ignore = root / ".dockerignore"
    lines = ignore.read_text().splitlines() if ignore.exists() else []
    rules = [
        (not line.startswith("!"), _pattern(line.removeprefix("!")))
        for line in (line.strip() for line in lines)
        if line and not line.startswith("#")
    ]
    return [name for name in _files(root, root, rules) if not _ignored(name, rules)]


def _files(root: Path, folder: Path, rules: list[tuple[bool, re.Pattern[str]]]) -> list[str]:
    found = []
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and not path.is_symlink():
            # A folder that is left out is looked into only where an exception could let something of it through.
            if not _ignored(name, rules) or any(not left_out for left_out, _ in rules):
                found += [] if name in _NEVER_LOOKED_INTO and _ignored(name, rules) else _files(root, path, rules)
        else:
            found.append(name)
    return found


_NEVER_LOOKED_INTO = (".git", ".venv", "runs")
"""Large, and no exception names anything in them."""


def _ignored(name: str, rules: list[tuple[bool, re.Pattern[str]]]) -> bool:
    left_out = False
    for leaves_out, pattern in rules:
        if pattern.fullmatch(name):
            left_out = leaves_out
    return left_out


def _pattern(glob: str) -> re.Pattern[str]:
    """A pattern also fits everything below what it fits. `*` and `?` stop at '/', `**` does not."""
    parts = []
    for piece in re.split(r"(\*\*/?|\*|\?)", glob.strip().strip("/").removeprefix("./")):
        parts.append({"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece)))
    return re.compile("".join(parts) + "(?:/.*)?")
