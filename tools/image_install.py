"""Run the build stage of the Dockerfile without Docker: the same commands, below a temporary folder.

Every absolute folder that the stage writes to (its WORKDIR, and what the last stage copies out of it below /opt) is put
below that folder. apt-get is left out: the compiler that it installs is for Triton's one file, and this machine's own
is taken where torch is a CUDA build. Then what the image must do is done, from an empty folder, with nothing but the
environment's own programs on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from dockerfile import Dockerfile, Instruction, Stage, context_files

PROOFS = (
    ["pip", "check"],
    ["interp", "--version"],
    ["python", "-m", "ray_jobs.run_plan", "--help"],
    ["ray", "--version"],
    ["python", "-m", "prebuilt_triton", "--check"],
    # The dashboard is what KubeRay hands the job to.
    ["python", "-c", "import ray.dashboard.optional_deps, ray.dashboard.modules.job.job_head, kubernetes, torch, s3fs"],
)
LOCKS = ("requirements.lock", "requirements-cuda.lock")
_VENV = "/opt/interp"
_OURS = frozenset({"interp", "pip"})


def install(dockerfile: Dockerfile, root: Path) -> int:
    """0 where everything of PROOFS works and the locks decided every version, else 1."""
    stage = dockerfile.stages[0]
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        folder = Path(name).resolve()
        moved = {each.value: f"{folder}{each.value}" for each in stage.all("WORKDIR")} | {"/opt/": f"{folder}/opt/"}
        run_stage(stage, root, moved)
        return prove(Path(f"{folder}{_VENV}"), [root / name for name in LOCKS], folder / "empty")


def run_stage(stage: Stage, root: Path, moved: Mapping[str, str]) -> None:
    """
    Args:
        root: the build context.
        moved: from folders of the image to folders of this machine.

    Raises:
        CalledProcessError: a command failed.
    """
    here = root
    environment = _clean_environment()
    for each in stage.instructions:
        if each.name == "WORKDIR":
            here = Path(_move(each.value, moved))
            here.mkdir(parents=True, exist_ok=True)
        elif each.name == "ENV":
            environment |= {key: _move(value, moved) for key, value in each.pairs.items()}
        elif each.name == "ARG":
            environment |= {key: value for key, value in each.pairs.items() if value}
        elif each.name == "COPY":
            _copy(each, root, here, moved)
        elif each.name == "RUN" and not each.value.startswith("apt-get"):
            command = _move(each.script, moved)
            print(f"+ {each.value}", flush=True)
            start = time.monotonic()
            # Not a login shell, and it stops at the first failure as the && between the parts say.
            subprocess.run(["sh", "-c", command], cwd=here, env=environment, check=True)
            print(f"  {time.monotonic() - start:.0f} s", flush=True)


def prove(venv: Path, locks: list[Path], empty: Path) -> int:
    failures = 0
    empty.mkdir()
    environment = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(empty), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {
        "TRITON_PREBUILT_DIR": str(venv.parent / "triton"),
        "TRITON_CACHE_MANAGER": "prebuilt_triton:Prebuilt",
    }
    for words in PROOFS:
        done = subprocess.run(
            [str(venv / "bin" / words[0]), *words[1:]], cwd=empty, env=environment, capture_output=True, text=True
        )
        failures += done.returncode != 0
        said = (done.stdout + done.stderr).strip().splitlines()
        shown = (said if done.returncode else said[:3]) or ["(says nothing)"]
        print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {' '.join(words)}", *shown, sep="\n         ")
    strangers = not_of_the_lock(
        distributions(path=[str(venv / "lib/python3.11/site-packages")]), "\n".join(lock.read_text() for lock in locks)
    )
    print(f"{'FAILED' if strangers else 'ok    '} every version is the locks'", *strangers, sep="\n         ")
    return 1 if failures or strangers else 0


def not_of_the_lock(installed: Iterable[Distribution], lock: str) -> list[str]:
    """What is installed at another version than the lock's, or is not in it."""
    pinned = {_normal(name): rest.strip() for name, _, rest in (line.partition("==") for line in lock.splitlines())}
    found = []
    for each in installed:
        name = _normal(each.metadata["Name"])
        # torch 2.13.0+cpu is 2.13.0 in another build.
        if name in _OURS or pinned.get(name) == each.version.partition("+")[0]:
            continue
        found.append(f"{name} {each.version}, the lock has {pinned.get(name, 'none')}")
    return sorted(found)


def _copy(each: Instruction, root: Path, here: Path, moved: Mapping[str, str]) -> None:
    *sources, target = each.words
    files = context_files(root)
    for source in sources:
        for name in files:
            if name != source and not name.startswith(f"{source.rstrip('/')}/"):
                continue
            whole = (root / source).is_dir()
            inside = Path(name).relative_to(source) if whole else Path(Path(name).name)
            into = here / _move(target, moved)
            to = into / inside if whole or target.endswith("/") else into
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, to)


def _move(text: str, moved: Mapping[str, str]) -> str:
    """Folders of the image at the beginning of a word become folders of this machine."""
    for old, new in moved.items():
        text = re.sub(rf"(?<![\w./]){re.escape(old)}(?!\w)" if old[-1] != "/" else rf"(?<![\w./]){old}", new, text)
    return text


def _clean_environment() -> dict[str, str]:
    """Of this machine's: where pip finds packages, and this Python's own programs, outside of any environment."""
    kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key in ("HOME", "TMPDIR")}
    return kept | {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin", "PIP_QUIET": "1"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()
