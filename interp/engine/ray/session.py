"""Start Ray for one run, or join the cluster that RAY_ADDRESS names.

What a joined cluster can do is what INTERP_CLUSTER says that it grows to, or else what it has now
(`interp.plan.nodes`). Its processes run in pods, whose environment is not this one's: what they must have of the
settings here is sent along.

Embedded Ray is private: a token made for this run guards its ports (they listen on all interfaces, whatever one asks),
its files are in a folder of its own, and only what was started here is stopped. It is also quiet: what goes wrong
comes back as an exception, so Ray's own lines stay in its log folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from interp.engine.lazy import available_cores
from interp.engine.resources import Capacity
from interp.errors import EngineError
from interp.plan.nodes import VARIABLE, nodes_from_environment, nodes_of

logger = logging.getLogger(__name__)

SMALL_STORE_BYTES, LARGE_MACHINE_BYTES = 512 << 20, 64 << 30

_LONGEST_TEMP = 40
"""Ray's socket paths are 66 characters longer than its folder, and may have 107."""

_PREFIX = "interp-ray-"
_PATIENCE_S = 10

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Threads that wait give up their core: harvesters and workers share the cores, and small products on a busy machine
    # were 20 times slower while the threads of others spun.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A dead worker is noticed within half a second, and a slow start is no failure.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # A node that goes is met when it has gone: training goes on from a checkpoint that is in the store.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_EMBEDDED = {"RAY_AUTH_MODE": "token"}

_SENT_ALONG = ("OMP_WAIT_POLICY", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_DATA_DISABLE_PROGRESS_BARS")
"""Of _QUIET, what other processes read; Ray Train passes on its own."""


@dataclass
class Session:
    """A connection to Ray.

    Attributes:
        folder: where an embedded Ray keeps its sockets and logs; None if it was not started here.
    """

    capacity: Capacity
    folder: Path | None
    _lock: IO[str] | None = None

    def close(self) -> None:
        """Stop what was started here; a cluster that was joined stays as it is."""
        import ray

        ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def object_store_size(memory: int) -> int:
    """Shared memory for what flows between processes, of a machine with so many bytes: streams hold back when it fills
    up. A large machine is for large models, of which a single micro-batch's activations can be half a gigabyte."""
    return SMALL_STORE_BYTES if memory < LARGE_MACHINE_BYTES else memory // 8


def start(*, cpus: int | None = None, gpus: int | None = None, object_store_bytes: int | None = None) -> Session:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine.

    Args:
        cpus: logical CPUs to declare here; by default twice the cores, and four at least.
        gpus: GPUs to declare here; by default what Ray finds.
        object_store_bytes: by default `object_store_size` of this machine.

    Raises:
        EngineError: Ray does not start, the cluster cannot be reached, or it can do no work.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    if address:
        return _join(address)
    _require_token_mode()
    os.environ.update(_EMBEDDED)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _forget_token()
    cores = available_cores()
    logical = max(4, 2 * cores) if cpus is None else cpus
    _remove_leftovers()
    folder, lock = _folder()
    shared = object_store_bytes or object_store_size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    options: dict[str, Any] = {"num_cpus": logical, "_temp_dir": str(folder), "object_store_memory": shared}
    if gpus is not None:
        options["num_gpus"] = gpus
    # address="local": without it Ray joins whatever cluster is around.
    _init(address="local", include_dashboard=False, **options)
    found = _resources()
    return Session(Capacity(cores, logical, found.get("GPU", 0.0)), folder, lock)


def _require_token_mode() -> None:
    """Ray reads its authentication mode once, when it is imported; changed after that, it refuses its own server."""
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != _EMBEDDED["RAY_AUTH_MODE"]:
        raise EngineError(
            "ray was imported before the engine could guard it with a token",
            value=f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')}",
            expected="RAY_AUTH_MODE=token when ray is imported",
            remedy="open the engine before you import ray, or set RAY_AUTH_MODE=token in the environment",
        )


def _forget_token() -> None:
    """What Ray has read of a token before, or that there was none, it would keep for as long as the process lives."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()


def _join(address: str) -> Session:
    said = nodes_from_environment(os.environ)
    _require_reachable(address)
    # The environment that a job was submitted with is part of this process's: the same names are no conflict.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    _init(address=address, runtime_env={"env_vars": {name: os.environ[name] for name in _SENT_ALONG}})
    import ray

    nodes = nodes_of(ray.nodes()) if said is None else said
    if not nodes:
        ray.shutdown()
        raise EngineError(
            "the Ray cluster has no node that takes work",
            value=f"RAY_ADDRESS={address}, {VARIABLE} is not set",
            expected="a node with CPUs, or word of what the cluster grows to",
            remedy=f"add a worker, or set {VARIABLE} where the cluster adds them by itself",
        )
    logger.info("joined a cluster: %s%s", "up to " if said else "", ", ".join(map(str, nodes)))
    return Session(Capacity.of(nodes, grows=said is not None), None)


def _require_reachable(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, and whatever else Ray looks up for itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise EngineError(
            "the Ray cluster cannot be reached",
            value=f"RAY_ADDRESS={address}: {error}",
            expected="a cluster that answers there",
            remedy="correct RAY_ADDRESS, or unset it to run on this machine",
        ) from error


def _init(**options: Any) -> None:
    import ray

    if ray.is_initialized():
        raise EngineError(
            "this process is connected to Ray already",
            value=ray.get_runtime_context().gcs_address,
            expected="one engine at a time",
            remedy="close the other engine, or call ray.shutdown() first",
        )
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with _held_back_stderr() as noise:
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except (RuntimeError, ConnectionError, TimeoutError, OSError, ValueError) as error:
            raise EngineError(
                "Ray does not start" if options["address"] == "local" else "the Ray cluster cannot be reached",
                value=f"{type(error).__name__}: {error} {noise()}".strip(),
                expected="a free /dev/shm, some memory and ports" if options["address"] == "local" else "RAY_ADDRESS",
                remedy="look at the message; the in-process engine (--engine inprocess) needs no Ray",
            ) from error


def _resources() -> dict[str, float]:
    import ray

    return dict(ray.cluster_resources())


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[Any]:
    """Keep what native code writes to the terminal while Ray starts; it is shown if the start fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile(mode="w+") as kept, contextlib.ExitStack() as stack:
        try:
            terminal = os.dup(2)
        except OSError:  # there is no stderr to hold back
            yield lambda: ""
            return
        stack.callback(os.close, terminal)
        os.dup2(kept.fileno(), 2)
        stack.callback(os.dup2, terminal, 2)

        def noise() -> str:
            kept.seek(0)
            return kept.read()[-2000:]

        yield noise


def _folder() -> tuple[Path, IO[str]]:
    """A new folder with a locked file in it: the lock goes when this process does."""
    base = tempfile.gettempdir()
    if len(base) + len(_PREFIX) + 12 > _LONGEST_TEMP:
        base = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, lock


def _remove_leftovers() -> None:
    """Delete the folders of runs that were killed: nobody holds their locks any more."""
    for base in {tempfile.gettempdir(), "/tmp"}:
        for folder in Path(base).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError), (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
