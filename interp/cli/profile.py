"""`interp profile`: init, list, show, check."""

from __future__ import annotations

from typing import Annotated

import typer

from interp.cli.console import FAILED, print_json, print_line, print_table
from interp.cluster import profiles
from interp.cluster.checks import Check, checks
from interp.cluster.profile import Profile
from interp.errors import ClusterError, InterpError
from interp.version import __version__

app = typer.Typer(name="profile", no_args_is_help=True, help="Where studies run: init, list, show, check.")

Name = Annotated[str, typer.Argument(metavar="NAME")]
Given = Annotated[
    str | None, typer.Argument(metavar="[NAME|FILE]", help="default: $INTERP_PROFILE, or the only profile")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

_SHOWN = {"ok": "ok", "missing": "MISSING", "unknown": "unknown"}


@app.command()
def init(
    name: Name,
    image: Annotated[
        str, typer.Option("--image", help="with interp of this version in it; a tag other than latest, or a digest")
    ] = f"registry.example/interp:{__version__}",
) -> None:
    """Write a profile with every setting explained; it never overwrites one."""
    path = profiles.init(name, image)
    print_line(f"{path}: edit it, then: interp profile check {name}")


@app.command("list")
def list_profiles(as_json: AsJson = False) -> None:
    """Profiles that can be named."""
    found = {name: _read(name) for name in profiles.known()}
    if as_json:
        return print_json([_summary(name, profile) for name, profile in found.items()])
    if not found:
        return print_line(f"no profile in {profiles.folder()}; make one: interp profile init NAME")
    print_table(("profile", "context", "namespace", "queue", "groups"), [_row(*each) for each in found.items()])


@app.command()
def show(given: Given = None, as_json: AsJson = False) -> None:
    """A profile as it is understood, defaults included. A profile holds no secrets."""
    from interp.cluster.render import dump_yaml

    data = profiles.load_profile(given).model_dump(mode="json")
    if as_json:
        return print_json(data)
    print_line(dump_yaml(data).rstrip())


@app.command()
def check(given: Given = None, as_json: AsJson = False) -> None:
    """Ask the cluster whether all that a profile names is there, and whether you may use it. Exit code 1 if not."""
    profile = profiles.load_profile(given)
    found = list(_checks(profile))
    missing = [one for one in found if one.state == "missing"]
    if as_json:
        name = profile.metadata.name
        print_json({"profile": name, "ok": not missing, "checks": [one.to_json() for one in found]})
    else:
        for one in found:
            print_line(f"{_SHOWN[one.state]:8} {one.what}" + (f": {one.remedy}" if one.remedy else ""))
    if missing:
        raise typer.Exit(FAILED)


def _checks(profile: Profile) -> list[Check]:
    """A cluster that cannot be reached is the first thing that is missing."""
    from interp.cluster.client import Cluster

    what = f"the API server of context {profile.context or '(current)'}"
    try:
        return [Check(what, "ok"), *checks(profile, Cluster.open(profile.context, profile.namespace))]
    except ClusterError as error:
        return [Check(what, "missing", ": ".join(part for part in (error.what, error.remedy) if part))]


def _read(name: str) -> Profile | InterpError:
    try:
        return profiles.load_profile(str(profiles.known()[name]))
    except InterpError as error:
        return error


def _summary(name: str, profile: Profile | InterpError) -> dict[str, object]:
    if isinstance(profile, InterpError):
        return {"name": name, "valid": False, "error": str(profile)}
    groups = [group.name for group in profile.workers]
    place = {"context": profile.context, "namespace": profile.namespace, "queue": profile.queue}
    return {"name": name, "valid": True, **place, "image": profile.image, "groups": groups}


def _row(name: str, profile: Profile | InterpError) -> tuple[str, ...]:
    if isinstance(profile, InterpError):
        return name, "", "", "", f"not valid: interp profile show {name}"
    groups = ", ".join(
        f"{group.name} {group.min}-{group.max}" + (f" x {group.gpus} {group.gpu}" if group.gpus else "")
        for group in profile.workers
    )
    return name, profile.context or "(current)", profile.namespace, profile.queue or "-", groups
