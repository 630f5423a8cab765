"""Sources that need no download: the standard library as a corpus, the model trained on it, and prompts for it.

The corpus is the Python source of the running interpreter's own standard library, one document per file. A document is
held out by a hash of its text, so the split depends neither on the order nor on the set of files that are present, and
a file that is copied elsewhere stays on its side of the split. The built-in model never saw a held-out document of the
interpreter that it was trained under.

The prompts are constructors up to `self.name =`, where `name` is a parameter: the next token copies it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from interp.errors import SourceError

HELD_OUT_PERCENT = 5
"""Share of the documents that no training run may see."""

BUILTIN_MODELS = ("tiny-split-llama",)

_MODELS_ROOT = Path(__file__).resolve().parent.parent / "models" / "builtin"
_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages"})
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})


def stdlib_files(*, include_tests: bool = False) -> tuple[Path, ...]:
    """The standard library's Python files that are valid UTF-8, sorted by their path below the library's root.

    Args:
        include_tests: also take the interpreter's own test packages. They hold about two thirds of the bytes, and
            minimal container images come without them, so a corpus that must be the same everywhere leaves them out.
    """
    return tuple(path for path, _ in _readable_files(include_tests))


def stdlib_documents(*, include_tests: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (document id, text) of every file; the id is the posix path below the library's root."""
    root = _stdlib_root()
    for path, text in _readable_files(include_tests):
        yield path.relative_to(root).as_posix(), text


def held_out(text: str) -> bool:
    """Whether a document belongs to the held-out share: a property of its text alone."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def builtin_model_path(name: str = "tiny-split-llama") -> Path:
    """The directory of a model that ships with the package."""
    if name not in BUILTIN_MODELS:
        raise SourceError(
            "there is no built-in model of that name",
            value=name,
            expected=f"one of {', '.join(BUILTIN_MODELS)}",
            remedy="name a built-in model, a directory, or a hub repository",
        )
    path = _MODELS_ROOT / name
    if not (path / "config.json").is_file():
        raise SourceError(
            "the built-in model is not in this installation",
            value=str(path),
            expected="a directory with config.json and model.safetensors",
            remedy="reinstall the package with its data files, or train the model again with `make tiny-model`",
        )
    return path


@dataclass(frozen=True)
class CopyPrompt:
    """The assignment of a parameter to the attribute of its name; both prompts end in `self.name =`."""

    bare: str
    """The constructor alone, from its `def`, without indentation."""
    in_file: str
    """The document from its beginning."""
    name: str


def copy_prompts(text: str) -> Iterator[CopyPrompt]:
    """Every `self.name = name` in the constructors of a document, in the order of the syntax tree."""
    lines = text.encode("utf-8").splitlines(keepends=True)
    for function, parameters in constructors(text):
        for value in copied_parameters(function, parameters):
            # Up to the space before the value, as `ast` counts: lines from 1, columns in bytes.
            body = [*lines[: value.lineno - 1], lines[value.lineno - 1][: value.col_offset - 1]]
            bare = b"".join(body[function.lineno - 1 :]).decode("utf-8")
            if bare.endswith(f"self.{value.id} ="):
                yield CopyPrompt(dedented(bare, function), b"".join(body).decode("utf-8"), value.id)


def constructors(text: str) -> Iterator[tuple[ast.FunctionDef, set[str]]]:
    """Every `__init__` of a document and the names of its parameters; none where the text does not parse."""
    try:
        with warnings.catch_warnings():
            # The library tests its own warnings; they are no news to the reader of a corpus.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield node, {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {"self"}


def copied_parameters(function: ast.FunctionDef, parameters: set[str]) -> Iterator[ast.Name]:
    """The right-hand sides of `self.name = name`, where `name` is a parameter."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)], value=ast.Name(id=name) as value
            ) if name == attribute and name in parameters:
                yield value


def dedented(source: str, function: ast.FunctionDef) -> str:
    """The function's source without the indentation that its `def` has in the file."""
    return re.sub(rf"^[ \t]{{0,{function.col_offset}}}", "", source, flags=re.MULTILINE)


def _stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _readable_files(include_tests: bool) -> Iterator[tuple[Path, str]]:
    root = _stdlib_root()
    skipped = _SKIPPED_FOLDERS if include_tests else _SKIPPED_FOLDERS | _TEST_FOLDERS
    found = [path for path in root.rglob("*.py") if skipped.isdisjoint(path.relative_to(root).parts[:-1])]
    if not found:
        raise SourceError(
            "this interpreter has no standard library in source form",
            value=str(root),
            expected="a directory of .py files",
            remedy="use an interpreter that is not frozen or zipped, or name another corpus",
        )
    for path in sorted(found, key=lambda path: path.relative_to(root).as_posix()):
        try:
            yield path, path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            # Some of the interpreter's own files are deliberately in another encoding.
            continue
