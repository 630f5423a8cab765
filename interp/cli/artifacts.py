"""`interp artifacts`: look into a store, copy out of it, check it, clean it up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.console import print_json
from interp.errors import SpecError
from interp.store import Artifact, Entry, GcReport, Store

app = typer.Typer(
    name="artifacts", help="Look into a store, copy out of it, check it, clean it up.", no_args_is_help=True
)

StoreOption = Annotated[
    str, typer.Option("--store", envvar="INTERP_STORE", metavar="URL", help="a folder, or s3://bucket/prefix")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
Ref = Annotated[str, typer.Argument(metavar="STAGE/KEY", help="also KEY alone, or the first characters of it")]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command("ls")
def list_(
    store: StoreOption,
    stage: Annotated[str | None, typer.Option(help="only of this stage")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of a store, finished or not."""
    found = Store.open(store).list(stage)
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    _print_table(
        ("STAGE", "KEY", "STATE", "FILES", "SIZE", "CHANGED"),
        [(e.stage, e.key[:16], e.state, str(e.files), _size(e.size), e.changed[:19]) for e in found],
    )


@app.command()
def show(ref: Ref, store: StoreOption, as_json: JsonOption = False) -> None:
    """Show where an artifact came from and what it is made of."""
    manifest = _artifact(Store.open(store), ref).manifest
    if as_json:
        print_json({**manifest.to_json(), "size": manifest.size})
        return
    typer.echo(f"{manifest.stage}/{manifest.key}\ncreated  {manifest.created}, {_size(manifest.size)}")
    for title, part in (("inputs", manifest.inputs), ("provenance", manifest.provenance), ("spec", manifest.spec)):
        typer.echo(f"{title}\n" + _indented(json.dumps(part, indent=2, sort_keys=True, ensure_ascii=False)))
    typer.echo("files")
    _print_table(
        ("  NAME", "SIZE", "SHA256"),
        [(f"  {name}", _size(record.size), record.sha256[:16]) for name, record in sorted(manifest.files.items())],
    )


@app.command()
def get(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="where to copy the files to; made if need be")],
    store: StoreOption,
    file: Annotated[list[str] | None, typer.Option("--file", help="only this file; may be repeated")] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an artifact's files into a folder, checked against their sha256."""
    artifact = _artifact(Store.open(store), ref)
    names = file or artifact.names()
    for name in names:
        artifact.copy(name, folder / name)
    if as_json:
        print_json({"stage": artifact.stage, "key": artifact.key, "folder": str(folder), "files": list(names)})
    else:
        typer.echo(f"{len(names)} files of {artifact.stage}/{artifact.key} are in {folder}")


@app.command()
def verify(
    store: StoreOption,
    refs: Annotated[list[str] | None, typer.Argument(metavar="[STAGE/KEY]...", help="all when none is given")] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="remove the corrupt ones, so that they are made anew")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every file anew and compare it with its manifest. The exit status is 1 if one differs."""
    opened = Store.open(store)
    entries = [opened.find(ref) for ref in refs] if refs else opened.list()
    results = [_verified(opened, entry, remove) for entry in entries if entry.state in ("finished", "corrupt")]
    if as_json:
        print_json(results)
    for result in results if not as_json else ():
        typer.echo(f"{result['stage']}/{result['key']}: {'whole' if result['ok'] else 'CORRUPT'}")
        for problem in result["problems"]:
            typer.echo(f"  {problem['file']}: found {problem['found']}, expected {problem['expected']}")
        if result["removed"]:
            typer.echo("  removed: run the study again to make it anew")
    if not all(result["ok"] for result in results):
        raise typer.Exit(1)


@app.command()
def gc(
    store: StoreOption,
    keep: Annotated[list[str] | None, typer.Option("--keep", metavar="KEY", help="keep this; may be repeated")] = None,
    study: Annotated[list[Path] | None, typer.Option("--study", help="keep what this study needs; repeatable")] = None,
    older_than: Annotated[str, typer.Option(help="age from which unfinished artifacts go: 90m, 12h, 7d")] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="really remove; without it, only tell")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell, or with --delete remove, what is no longer wanted.

    Unfinished artifacts go by age. Finished ones are all kept unless --keep or --study say which; then the others go.
    """
    opened = Store.open(store)
    wanted = {opened.find(ref).key for ref in keep or ()} | _keys_of(study or (), opened)
    report = opened.gc(keep=wanted if keep or study else None, older_than=_seconds(older_than), dry_run=not delete)
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)


def _verified(store: Store, entry: Entry, remove: bool) -> dict[str, Any]:
    if entry.state == "corrupt":
        problems = [{"file": "manifest.json", "found": "a damaged manifest", "expected": "one that matches its digest"}]
    else:
        problems = [asdict(problem) for problem in store.get(entry.stage, entry.key).problems()]
    removed = bool(problems) and remove
    if removed:
        store.remove(entry.stage, entry.key)
    return {"stage": entry.stage, "key": entry.key, "ok": not problems, "problems": problems, "removed": removed}


def _artifact(store: Store, ref: str) -> Artifact:
    entry = store.find(ref)
    return store.get(entry.stage, entry.key)


def _keys_of(studies: Sequence[Path], store: Store) -> set[str]:
    """The keys of all stages of some studies, and of the artifacts that they borrow."""
    if not studies:
        return set()
    from interp.plan import make_plan
    from interp.spec.loading import load_study

    stages = [stage for path in studies for stage in make_plan(load_study(path), store).stages]
    return {key for stage in stages for key in (stage.key, *stage.inputs.values())}


def _seconds(text: str) -> float:
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())):
        raise SpecError(
            "--older-than is no age", value=text, expected="a number and one of s m h d w, such as 90m or 7d"
        )
    return float(match[1]) * _SECONDS[match[2]]


def _print_report(report: GcReport) -> None:
    for entry in report.removed:
        typer.echo(f"{entry.stage}/{entry.key}  {entry.state}  {_size(entry.size)}")
    for entry in report.busy:
        typer.echo(f"{entry.stage}/{entry.key}  is being made by {entry.holder}: left alone")
    verb = "would free" if report.dry_run else "freed"
    more = f", {report.remnants} remnants" if report.remnants else ""
    more += f", {report.uploads} unfinished uploads" if report.uploads else ""
    typer.echo(f"{verb} {_size(report.freed)}: {len(report.removed)} artifacts{more}; {report.kept} kept")
    if report.dry_run and (report.removed or report.remnants or report.uploads):
        typer.echo("nothing was removed: say --delete to do it")


def _print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
