"""The driver of a run: load its plan from the store, run its stages, and leave word of it in the store.

    python -m ray_jobs.run_plan --run RUN --store URL [--retry-failed] [--engine ray|inprocess] [--wait SECONDS]

A study is not given again: what runs is runs/RUN/plan.json, whose keys are checked. Phases: claim an attempt's number;
see that nothing recorded or asked for forbids it; run the plan; say how it ended, and wait until the store has that.
Whatever kills this process, the next attempt goes on from what is finished and from the last checkpoint.

Exit codes: 0 done; 1 failed, another try may succeed; 2 the study cannot be run as it is; 3 another driver held a stage
for longer than --wait; 143 stopped by SIGTERM or `interp cancel`, with a checkpoint kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from interp.engine import Engine
    from interp.plan import Plan
    from interp.store.runs import RunFolder
    from ray_jobs.driver_log import DriverLog
    from ray_jobs.ending import Ending
    from ray_jobs.redaction import Redactor
    from ray_jobs.stopping import Stopping
    from ray_jobs.tracking import Tracker

T = TypeVar("T")

logger = logging.getLogger("ray_jobs.run_plan")

DAY_S = 86_400.0
START_PATIENCE_S = 60.0
LAST_WORDS_S, LAST_WORDS_STOPPED_S = 120.0, 20.0
"""Waited for at the end until the store has everything. Who stops a driver kills it before long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the run that the arguments name."""
    options = _options(arguments)
    from ray_jobs.driver_log import driver_log
    from ray_jobs.redaction import Redactor
    from ray_jobs.stopping import Stopping

    redactor, stopping = Redactor(), Stopping()
    with driver_log(redactor) as log:
        stopping.handle_signals()
        return _attempt(options, log, redactor, stopping)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.run_plan",
        description="Run the plan of a run that was submitted; what is finished is not done again.",
        epilog="Exit codes: 0 done; 1 failed, another try may succeed; 2 the study cannot be run as it is; 3 another "
        "driver held a stage for longer than --wait; 143 stopped, with a checkpoint kept.",
    )
    environment = os.environ.get
    parser.add_argument(
        "--run", default=environment("INTERP_RUN"), help="its name: plan.json is in runs/RUN ($INTERP_RUN)"
    )
    parser.add_argument("--store", default=environment("INTERP_RUN_STORE"), help="its URL ($INTERP_RUN_STORE)")
    parser.add_argument(
        "--retry-failed", action="store_true", help="trace prompts again that failed by no fault of theirs"
    )
    parser.add_argument("--engine", choices=("ray", "inprocess"), default="ray", help="ray joins $RAY_ADDRESS if set")
    parser.add_argument(
        "--wait", type=float, default=DAY_S, metavar="SECONDS", help="for another driver that makes a stage (a day)"
    )
    options = parser.parse_args(arguments)
    for name in ("run", "store"):
        if not getattr(options, name):
            parser.error(f"--{name} is missing")
    return options


def _attempt(options: argparse.Namespace, log: DriverLog, redactor: Redactor, stopping: Stopping) -> int:
    from interp.store import Store
    from interp.store.runs import RunFolder
    from interp.version import __version__
    from ray_jobs.ending import ending_of
    from ray_jobs.outbox import Outbox
    from ray_jobs.tracking import Tracker

    me = f"{socket.gethostname()}, pid {os.getpid()}, interp {__version__} ({uuid.uuid4().hex})"
    logger.info("a driver begins on %s", me)
    try:
        folder = RunFolder(Store.open(options.store), options.run)
        number, claimed = _patiently(lambda: _begin(folder, log))
    except BaseException as error:  # noqa: BLE001 - told on stdout: there is nothing in the store yet to tell it in
        ending = ending_of(error, stopping)
        _say(error, ending)
        return ending.code
    tracker = Tracker(options.run, number, redactor)
    outbox = tracker.outbox = Outbox(folder, number, tracker.document)
    log.to(lambda line: outbox.add("log", line), after=claimed)
    outbox.start()
    logger.info("attempt %d of run %s in %s", number, options.run, folder.store.url)
    ending = _run(options, folder, tracker, redactor, stopping)
    stopping.no_more()
    tracker.over(ending)
    logger.info("attempt %d: %s", number, ending.state)
    if not outbox.close(LAST_WORDS_STOPPED_S if ending.state == "stopped" else LAST_WORDS_S):
        logger.error("the store did not take the last lines of the log, or the status: they are on stdout only")
    return ending.code


def _begin(folder: RunFolder, log: DriverLog) -> tuple[int, int]:
    """Claim an attempt with the lines so far; its number, and how many lines they were."""
    lines = log.early
    return folder.begin_attempt("".join(lines)), len(lines)


def _patiently(request: Callable[[], T]) -> T:
    """Ask until the store answers, for a while: it may be starting too."""
    from interp.errors import StoreAccessError

    deadline = time.monotonic() + START_PATIENCE_S
    while True:
        try:
            return request()
        except StoreAccessError as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("trying again for up to %.0f s: %s", START_PATIENCE_S, error)
        time.sleep(2)


def _run(
    options: argparse.Namespace, folder: RunFolder, tracker: Tracker, redactor: Redactor, stopping: Stopping
) -> Ending:
    """Run the plan, unless it is known that this is of no use or not wanted."""
    from interp.cluster.progress import RunStatus
    from ray_jobs.ending import SUCCEEDED, ending_of, recorded

    def engine() -> Engine:
        from interp.engine import open_engine

        try:
            return open_engine(options.engine)
        finally:
            stopping.handle_signals()
            redactor.refresh()  # Ray's own token

    try:
        before = _or_none(lambda: RunStatus.read(folder))
        token = str((_or_none(lambda: folder.json("run.json")) or {}).get("token", ""))
        tracker.begins(token)
        if before is not None and (ending := recorded(before, token)) is not None:
            tracker.as_before(before)
            logger.error(
                "attempt %d failed with what another try does not change; correct it, then `interp resume %s`:\n%s",
                before.attempt,
                folder.name,
                ending.error.message if ending.error else "",
            )
            return ending
        if stopping.look(folder, token):
            raise SystemExit
        stopping.keep_looking(folder, token)
        plan = _plan(folder)
        tracker.planned(plan)
        from interp.stages.runner import run_plan
        from ray_jobs.sameness import require_same_sources

        require_same_sources(plan, folder.store)

        run_plan(plan, folder.store, engine, tracker, retry_failed=options.retry_failed, wait=options.wait)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the store is told
        ending = ending_of(error, stopping)
        _say(error, ending)
        return ending
    return SUCCEEDED


def _plan(folder: RunFolder) -> Plan:
    from interp.errors import SpecError
    from interp.plan import Plan

    text = folder.text("plan.json")
    if text is None:
        raise SpecError(
            "there is no plan of this run in this store",
            value=f"run {folder.name} in {folder.store.url}",
            remedy="see that --run and --store are what `interp submit` said, or submit the study",
        )
    return Plan.from_json(text)


def _or_none(read: Callable[[], T | None]) -> T | None:
    """What is there, if it can be made sense of: a damaged status or run.json does not stop a run."""
    from interp.errors import StoreAccessError, StoreError

    try:
        return read()
    except StoreAccessError:
        raise
    except StoreError as error:
        logger.warning("%s", error)
        return None


def _say(error: BaseException, ending: Ending) -> None:
    from interp.errors import InterpError
    from ray_jobs.ending import FAILED

    if ending.state == "stopped":
        logger.warning("%s", ending.error.message if ending.error else error)
    elif ending.code == FAILED or not isinstance(error, InterpError):
        logger.error("failed; the next attempt goes on from here", exc_info=error)
    else:
        logger.error("%s: %s", type(error).__name__, error)


if __name__ == "__main__":
    sys.exit(main())
