"""One Ray cluster on this machine, as the head pod of a RayCluster would start it: `ray start --head`, with a token.

It has a session, ports and a folder of its own, and is ended by the ids of the processes that were started here. Its
folder is short: Ray's socket paths are 66 characters longer, and may have 107.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil
from job_client import JobClient

OBJECT_STORE_BYTES = 256 << 20
REPOSITORY = Path(__file__).parent.parent.parent


def of_the_image() -> dict[str, str]:
    """What a pod has beside what its template names: here, this Python and the project."""
    found = {name: os.environ[name] for name in ("LANG", "TMPDIR", "HOME") if name in os.environ}
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found |= {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]), "OMP_NUM_THREADS": "1"}
    return found | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}


class RayHead:
    """A head that also does the workers' work: one machine stands for all pods of a RayCluster."""

    def __init__(self, env: dict[str, str], *, cpus: float = 4, after: RayHead | None = None) -> None:
        """`after`: a head that was lost; this one has its address and its token, as behind a Service."""
        self.folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
        dashboard, client_server, agent = _free_ports(3)
        if after is None:
            self.jobs = JobClient(f"http://127.0.0.1:{dashboard}", secrets.token_hex(32))
        else:
            self.jobs, dashboard = after.jobs, int(after.jobs.url.rpartition(":")[2])
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
        command += ["--port=0", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client_server}", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--num-cpus={cpus:g}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--temp-dir={self.folder}", "--disable-usage-stats"]
        with (self.folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment(env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._is_ready = False

    def _environment(self, env: dict[str, str]) -> dict[str, str]:
        return {**of_the_image(), **env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def token(self) -> str:
        return self.jobs.token

    @property
    def dashboard(self) -> str:
        return self.jobs.url

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether jobs can be submitted. Once true it stays so while the head lives."""
        self._is_ready = self._is_ready or (self.is_alive() and self.jobs.answers())
        return self._is_ready and self.is_alive()

    def log(self) -> str:
        return (self.folder / "head.log").read_text(errors="replace")

    def job_log(self, job: str) -> Path:
        return self.folder / "session_latest" / "logs" / f"job-driver-{job}.log"

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def driver(self) -> psutil.Process | None:
        """The Python process of the job that runs: the last of the chain supervisor, shell, entrypoint."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "JobSupervisor" not in process.name() + " ".join(process.cmdline()):
                    continue
                # The supervisor's other child is a shell that watches over it.
                chains = [child for child in process.children() if "kill -9 -" not in " ".join(child.cmdline())]
                if chains:
                    return next(iter(chains[0].children()), chains[0])
        return None

    def worker(self, title: str) -> psutil.Process | None:
        """A process of Ray's with this in its title, which tells what it is at."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found = " ".join(process.cmdline())
                if found.startswith("ray::") and title in found:
                    return process
        return None

    def kill(self) -> None:
        """As a machine that fails: everything at once."""
        family = self.processes()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _kill(family)
        self._process.wait(30)

    def close(self) -> None:
        """Kill what is left, and remove the folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _free_ports(count: int) -> list[int]:
    """Held open until all are chosen."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def end_with_parent() -> None:
    """A test run that is itself killed leaves no Ray behind: `ray start --block` ends its processes (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
