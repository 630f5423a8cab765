"""Who this process is, so that another one on the same machine can tell whether it is still there.

A host name and a pid are not enough: containers share names and have pids of their own, and pids come back. So a
machine is its boot and its pid namespace, and a process has the time of its start. Where the system does not tell
(no /proc), processes on the same host are asked for by pid alone, with the host's name as the machine.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    owner: str
    host: str
    machine: str
    pid: int
    born: str


def this() -> Identity:
    host = socket.gethostname()
    owner = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    return Identity(owner, host, _machine(host), os.getpid(), _born(os.getpid()))


def is_gone(machine: str, pid: int, born: str) -> bool:
    """Whether a process ran on this machine and runs no more. False when that cannot be known."""
    if machine != _machine(socket.gethostname()):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's: there is one
        pass
    # A zombie has ended too; a process that /proc does not show us (hidepid) may well be there.
    return bool(born) and _born(pid) not in (born, "")


def _machine(host: str) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return host


def _born(pid: int) -> str:
    """Start of a process in clock ticks since boot (field 22 of its stat), `ended` for a zombie, empty if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] == "Z" else fields[19]
