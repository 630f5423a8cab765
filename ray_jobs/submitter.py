"""The submitter's pod: hand the driver to Ray, once, and print its log until it has ended.

    python -m ray_jobs.submitter ENTRYPOINT

KubeRay's own command ends when its connection to the log does, and half a minute later KubeRay takes the run for
failed, however well the driver works. This one looks whether the job has ended; if not, it follows again from where it
was, and so it does when nothing has come for QUIET_S: a connection can be dead without having ended.

KubeRay sets RAY_DASHBOARD_ADDRESS, RAY_JOB_SUBMISSION_ID and the token that guards Ray. A head that was replaced knows
of no job: the driver is handed over again, and goes on from its checkpoints.

Exit codes: 0 the driver has ended (how, KubeRay asks Ray itself); 1 Ray did not answer for PATIENCE_S.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TextIO

logger = logging.getLogger("ray_jobs.submitter")

PATIENCE_S = 300.0
PAUSE_S = 2.0
QUIET_S = 120.0
ANSWER_S = 60.0
"""Ray's client waits for ever for an answer to a request."""

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs(Protocol):
    """The part of Ray's JobSubmissionClient that is used."""

    def submit_job(self, *, entrypoint: str, submission_id: str) -> Any: ...

    def get_job_status(self, job_id: str) -> Any: ...

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1:
        sys.stderr.write("usage: python -m ray_jobs.submitter ENTRYPOINT\n")
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    address = f"http://{os.environ['RAY_DASHBOARD_ADDRESS'].removeprefix('http://')}"

    def connect() -> Jobs:
        return client_of(address)

    return follow(connect, os.environ["RAY_JOB_SUBMISSION_ID"], given[0], sys.stdout)


def client_of(address: str, answer: float = ANSWER_S) -> Jobs:
    """Ray's client, whose requests end after so many seconds without an answer.

    Raises:
        OSError, RuntimeError: nobody answers at the address, or somebody else than Ray.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, **{"timeout": answer, **kwargs})

    client: Jobs = Client(address)
    return client


def follow(
    connect: Callable[[], Jobs],
    job: str,
    entrypoint: str,
    out: TextIO,
    *,
    patience: float = PATIENCE_S,
    pause: float = PAUSE_S,
    quiet: float = QUIET_S,
) -> int:
    """Submit the job if Ray does not know it; print its log, every line once, until it has ended."""
    from aiohttp import ClientError

    printed = _Printed(out)
    while True:
        try:
            client = connect()
            status = _status(client, job)
            if status is None:
                client.submit_job(entrypoint=entrypoint, submission_id=job)
                printed.begin()
            complete = asyncio.run(printed.tail(client, job, quiet))
            printed.heard = time.monotonic()
            # What a job prints last is in a log that is read after its end.
            if complete and status in _ENDED:
                return 0
        except (OSError, RuntimeError, ClientError) as error:
            silent = time.monotonic() - printed.heard
            if silent > patience:
                logger.warning("Ray has not answered for %.0f s (%s): giving up", silent, error)
                return 1
            logger.warning("following the driver again: %s", str(error)[:500] or type(error).__name__)
        time.sleep(pause)


def _status(client: Jobs, job: str) -> str | None:
    """None: Ray knows of no such job."""
    try:
        status = client.get_job_status(job)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise
    return str(getattr(status, "value", status))


class _Printed:
    """How much of a log has been printed: Ray sends it from its beginning each time.

    Attributes:
        heard: when Ray last did what it was asked for; one that answers may still refuse the driver for ever.
    """

    def __init__(self, out: TextIO):
        self._out, self._characters = out, 0
        self.heard = time.monotonic()

    def begin(self) -> None:
        """A new job, with a log of its own."""
        self._characters = 0

    async def tail(self, client: Jobs, job: str, quiet: float) -> bool:
        """Print what is new until the connection ends; False if nothing came for so long."""
        texts, known = client.tail_job_logs(job), 0
        while True:
            try:
                text = await asyncio.wait_for(anext(texts), quiet)
            except StopAsyncIteration:
                return True
            except TimeoutError:
                return False
            self.heard = time.monotonic()
            fresh = text[max(0, self._characters - known) :]
            known += len(text)
            self._characters = max(self._characters, known)
            self._out.write(fresh)
            self._out.flush()


if __name__ == "__main__":
    raise SystemExit(main())
