"""`interp convert`: dictionaries of one program as another's, or as a repository of the Hugging Face hub.

What is written appears under its name only when it is whole: it is made in a hidden folder beside it and then renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import print_json, print_line
from interp.cli.push import push, require_repository, tell
from interp.errors import DictionaryError, SpecError

if TYPE_CHECKING:
    from interp.dictionaries.foreign import Claim, Loaded

HUB = "hub"
"""What `--to` calls a repository of the hub: dictionaries in one of the formats, and a card."""


Source = Annotated[str, typer.Argument(metavar="SRC", help="a folder, a file, or hf://org/name/folder")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="the folder to make")]
Model = Annotated[str, typer.Option("--model", help="the model that they belong to: a folder, hf://org/name, ...")]
To = Annotated[
    str | None,
    typer.Option(
        "--to", help="interp, circuit-tracer, saelens, sparsify, or hub; by default interp, or circuit-tracer of ours"
    ),
]
From = Annotated[str | None, typer.Option("--format", help="of SRC; told from the files when absent")]
ModelName = Annotated[
    str | None, typer.Option("--model-name", help="what others load the model by; by default --model")
]
Scan = Annotated[str | None, typer.Option("--scan", help="where circuit-tracer's page finds the features")]
Layout = Annotated[str, typer.Option("--layout", help="of the dictionaries beside the card: --to hub, as what")]
Evaluation = Annotated[
    Path | None, typer.Option("--evaluation", help="evaluation.json of a study, for the card of --to hub")
]
SetName = Annotated[
    str | None, typer.Option("--set", help="which set of the evaluation, where it has several at one place")
]
PushTo = Annotated[
    str | None,
    typer.Option("--push", help="org/name: upload what --to hub made; without HF_TOKEN, tell what would be sent"),
]
Force = Annotated[bool, typer.Option("--force", help="replace the dictionaries that are at DST")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def convert(
    src: Source,
    dst: Target,
    model: Model,
    to: To = None,
    format: From = None,
    model_name: ModelName = None,
    scan: Scan = None,
    layout: Layout = "interp",
    evaluation: Evaluation = None,
    set_name: SetName = None,
    push_to: PushTo = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Read dictionaries in any format that is known, and write them in another, or as a repository of the hub.

    Files of other programs do not say with certainty which model they belong to: that it is --model is your word, and
    what is written says so.
    """
    from interp.dictionaries.foreign import read_dictionaries, recognise
    from interp.sources.dictionaries import fetched

    _require_for_hub(to == HUB, layout, evaluation, push_to)
    _require_free(dst, force)
    path = fetched(src)
    found = format or recognise(path)
    wanted = to or ("circuit-tracer" if found == "interp" else "interp")
    _require_writable(layout if wanted == HUB else wanted)
    claim = _claim(model)
    loaded = read_dictionaries(path, claim, found)
    name = model_name or _loaded_by(model)
    with _whole(dst, force) as partial:
        if wanted == HUB:
            on_hub = model_name or (name if model.startswith("hf://") else None)
            card = {"repository": push_to, "layout": layout, "model_name": name, "base_model": on_hub}
            figures = _figures(evaluation, set_name, list(loaded))
            _write_hub(partial, loaded, src, path, claim, scan, evaluation=figures, **card)
        else:
            _write(partial, loaded, wanted, claim, name, scan)
    pushed = push(dst, push_to) if push_to else None
    _tell(pushed, {"from": found, "to": wanted, "folder": str(dst), "dictionaries": list(loaded)}, as_json)


def _write(folder: Path, loaded: Loaded, layout: str, claim: Claim, model_name: str, scan: str | None) -> None:
    from interp.dictionaries.foreign import write_dictionaries

    mlps = [claim.place(layer) for layer in range(claim.n_layers)]
    write_dictionaries(loaded, folder, layout, mlps=mlps, model_name=model_name, scan=scan)


def _tell(pushed: dict[str, Any] | None, told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(told if pushed is None else {**told, "pushed": pushed})
        return
    print_line(
        f"{len(told['dictionaries'])} dictionaries, from {told['from']} to {told['to']}, are in {told['folder']}"
    )
    if pushed is not None:
        tell(pushed)


def _loaded_by(model: str) -> str:
    """`org/name` of a model of the hub, whatever its revision."""
    return model.removeprefix("hf://").partition("@")[0] if model.startswith("hf://") else model


def _figures(evaluation: Path | None, set_name: str | None, places: list[str]) -> dict[str, dict[str, Any]]:
    from interp.dictionaries.foreign import evaluation_of

    return {} if evaluation is None else evaluation_of(evaluation, places, set_name)


def _write_hub(folder: Path, loaded: Loaded, src: str, path: Path, claim: Claim, scan: str | None, **said: Any) -> None:
    """Dictionaries and card of what was read from `src`, which is at `path` here; `said` is what else is in `Card`.

    What anybody may read later names no folder of this machine: a model that is one goes by its last part.
    """
    from interp.dictionaries.foreign import Card, artifact_of, for_others, public_name, write_card
    from interp.sources.dictionaries import HUB as HF
    from interp.sources.dictionaries import HubPlace

    source = HubPlace.of(src).pinned if src.startswith(HF) else None
    loaded, said = for_others(loaded), {**said, "model_name": public_name(said["model_name"])}
    _write(folder, loaded, said["layout"], claim, said["model_name"], scan)
    write_card(folder, loaded, Card(source=source, artifact=artifact_of(path), **said))


def _require_for_hub(hub: bool, layout: str, evaluation: Path | None, push_to: str | None) -> None:
    """Refuse what only a repository of the hub has, without one; and a name that is none, before any work."""
    said = {"--layout": layout != "interp", "--evaluation": evaluation is not None, "--push": push_to is not None}
    if not hub and (alone := [option for option, given in said.items() if given]):
        raise SpecError("this is of a repository of the hub", value=alone[0], expected="with --to hub")
    if push_to is not None:
        require_repository(push_to)


def _require_writable(format: str) -> None:
    from interp.dictionaries.foreign import format_named, writable

    if format_named(format).write is None:
        raise SpecError("this format is only read", value=f"--to {format}", expected=" or ".join([*writable(), HUB]))


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
