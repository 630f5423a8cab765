"""Run a command and tell its wall time and the peak memory of it and all its descendants.

    python -m benchmarks.footprint interp run specs/quickstart.yaml

Memory is the sum of the proportional set sizes (PSS), so that pages which processes share are counted once; sampled
twice a second. The exit status is the command's.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

INTERVAL = 2.0


def family_pss(root: psutil.Process) -> tuple[int, int]:
    """Bytes of PSS of a process and its descendants, and how many processes they are."""
    total = count = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
            count += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # It ended between the listing and the look.
    return total, count


def measure(command: list[str]) -> dict[str, float]:
    """Run `command` to its end; seconds, peak bytes, processes at the peak, exit status."""
    start, peak, processes = time.monotonic(), 0, 0
    child = subprocess.Popen(command)
    root = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            now, count = family_pss(root)
        except psutil.NoSuchProcess:
            break
        if now > peak:
            peak, processes = now, count
        time.sleep(INTERVAL)
    return {
        "seconds": time.monotonic() - start,
        "peak_bytes": peak,
        "processes": processes,
        "status": child.wait(),
    }


def main() -> None:
    result = measure(sys.argv[1:])
    print(
        f"{result['seconds']:.1f} s, peak {result['peak_bytes'] / 1e9:.2f} GB in {result['processes']:.0f} processes",
        file=sys.stderr,
    )
    raise SystemExit(int(result["status"]))


if __name__ == "__main__":
    main()
