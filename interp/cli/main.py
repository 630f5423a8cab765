"""`interp`: the console entry point.

Each row of `COMMANDS` names the function or the typer application that does the work; its module is imported when the
command is called, so that a command that only reads text does not wait for the libraries of one that computes.

Exit codes: 0 done; 1 failed; 2 the study or the command line must change; 130 interrupted. Where 1 says more than that
(a run that ended before its time, a study that differs from a run), the command's help says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from interp.cli.console import exit_code, print_line, report
from interp.errors import InterpError
from interp.version import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("interp.cli.run:run", "Run a study on this machine; finished stages are not run again."),
    "plan": ("interp.cli.study:plan", "Show the stages of a study: keys, what is cached, what the rest will cost."),
    "validate": ("interp.cli.study:validate", "Check study files, and that the model has the hook points they name."),
    "trace": ("interp.cli.run:trace", "Trace prompts with dictionaries that are there already."),
    "intervene": ("interp.cli.intervene:intervene", "Hold features at other values and see what the model says."),
    "eval": ("interp.cli.eval:evaluate", "Compare dictionaries, ours or of other programs, on the same tokens."),
    "artifacts": ("interp.cli.artifacts:app", "Look into a store: ls, show, get, verify, gc."),
    "convert": ("interp.cli.convert:convert", "Rewrite dictionaries of one program as another's."),
    "submit": ("interp.cli.submit:submit", "Run a study on a Kubernetes cluster; submitting it twice is one run."),
    "status": ("interp.cli.runs:status", "How a run on a cluster is: its stages, why it waits or failed, what to do."),
    "logs": ("interp.cli.follow:logs", "The log of a run on a cluster; -f follows it until its end."),
    "cancel": ("interp.cli.submit:cancel", "Stop a run on a cluster; what is finished and a checkpoint stay."),
    "resume": ("interp.cli.submit:resume", "Start a run on a cluster again that has ended before its time."),
    "list": ("interp.cli.runs:list_runs", "List the runs on a cluster."),
    "diff": ("interp.cli.runs:diff", "What differs between a study and a run on a cluster."),
    "profile": ("interp.cli.profile:app", "Profiles, which say where studies run: init, list, show, check."),
    "schema": ("interp.cli.study:schema", "Print the JSON Schema of the study file, for editors."),
}
"""name -> (module:function or typer application, help)"""

_HELP = "From a trained transformer to readable circuits: one study file, one command."
_EPILOG = "Exit codes: 0 done, 1 failed, 2 the study or the command line must change, 130 interrupted."


class LazyCommand(TyperCommand):
    """A command that is imported when it is called; until then its name and help are all there is."""

    def __init__(self, name: str, target: str, help: str):
        super().__init__(name, help=help)
        self.target = target

    def load(self) -> Any:
        """The command itself."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            command: Any = get_group(found)
        else:
            app = typer.Typer(add_completion=False)
            app.command(self.name)(found)
            command = get_command(app)
        command.name = self.name
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)


def root() -> TyperGroup:
    """The command group."""
    app = typer.Typer(name="interp", help=_HELP, epilog=_EPILOG, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_options)
    group = get_group(app)
    for name, (target, text) in COMMANDS.items():
        group.add_command(LazyCommand(name, target, text))
    return group


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        root().main(args=given, prog_name="interp")
    except InterpError as error:
        report(error, as_json="--json" in given)
        raise SystemExit(exit_code(error)) from None


def _version(wanted: bool) -> None:
    if wanted:
        print_line(f"interp {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of `interp` itself."""


if __name__ == "__main__":
    main()
