"""`interp convert`: dictionaries of one program as another's.

What is written appears under its name only when it is whole: it is made in a hidden folder beside it and then renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.console import print_json, print_line
from interp.errors import DictionaryError, SpecError

if TYPE_CHECKING:
    from interp.dictionaries.foreign import Claim


def convert(
    src: Annotated[str, typer.Argument(metavar="SRC", help="a folder, a file, or hf://org/name/folder")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="the folder to make")],
    model: Annotated[str, typer.Option("--model", help="the model that they belong to: a folder, hf://org/name, ...")],
    to: Annotated[
        str | None, typer.Option("--to", help="interp or circuit-tracer; by default interp, or circuit-tracer of ours")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="of SRC; told from the files when absent")] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="what circuit-tracer loads the model by; by default --model")
    ] = None,
    scan: Annotated[str | None, typer.Option("--scan", help="where circuit-tracer's page finds the features")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the dictionaries that are at DST")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Read dictionaries in any format that is known, and write them as ours or as circuit-tracer's.

    Files of other programs do not say with certainty which model they belong to: that it is --model is your word, and
    what is written says so.
    """
    from interp.dictionaries.foreign import format_named, read_dictionaries, recognise, writable, write_dictionaries
    from interp.sources.dictionaries import fetched

    _require_free(dst, force)
    path = fetched(src)
    found = format or recognise(path)
    wanted = to or ("circuit-tracer" if found == "interp" else "interp")
    if format_named(wanted).write is None:
        raise SpecError("this format is only read", value=f"--to {wanted}", expected=" or ".join(writable()))
    claim = _claim(model)
    loaded = read_dictionaries(path, claim, found)
    mlps = [claim.place(layer) for layer in range(claim.n_layers)]
    hub_name = model_name or model.removeprefix("hf://")
    with _whole(dst, force) as partial:
        write_dictionaries(loaded, partial, wanted, mlps=mlps, model_name=hub_name, scan=scan)
    if as_json:
        print_json({"from": found, "to": wanted, "folder": str(dst), "dictionaries": list(loaded)})
    else:
        print_line(f"{len(loaded)} dictionaries, from {found} to {wanted}, are in {dst}")


def _claim(source: str) -> Claim:
    from interp.dictionaries.foreign import Claim
    from interp.models.loading import load_model
    from interp.wrapper import HookedModel

    return Claim(HookedModel(load_model(source)), source)


def _require_free(dst: Path, force: bool) -> None:
    """Replace nothing unless told to, and even then nothing but dictionaries."""
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        return
    if not force or not dst.is_dir():
        raise SpecError("there is something at DST already", value=str(dst), remedy="name another folder, or --force")
    from interp.dictionaries.foreign import first_other

    try:
        other = first_other(dst)
    except DictionaryError as error:
        raise SpecError(
            "what is at DST is no set of dictionaries, and is not replaced",
            value=str(dst),
            expected="dictionaries, or nothing",
            remedy="name another folder",
        ) from error
    if other is not None:
        raise SpecError(
            "at DST is more than the dictionaries that this command writes, and it is not replaced",
            value=str(other),
            expected="dictionaries alone, or nothing",
            remedy="move that away, or name another folder",
        )


@contextmanager
def _whole(dst: Path, force: bool) -> Iterator[Path]:
    """A folder to write into, which becomes `dst` when all went well and vanishes when not."""
    target = dst.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        _require_free(dst, force)
        if target.exists():
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
