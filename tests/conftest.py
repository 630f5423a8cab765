"""What every test relies on: one thread a process, no hub, no telemetry; and one Ray for all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from interp.engine import Engine

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray reads it when it is imported, which collecting the engines' tests does.
os.environ.setdefault("RAY_AUTH_MODE", "token")

pytest_plugins = ("s3",)


@pytest.fixture(scope="session")
def ray_engine() -> Iterator[Engine]:
    """An embedded Ray: it takes seconds to start."""
    from interp.engine import open_engine

    # The processes of Ray import the toys and the tiny models by name, as pytest does.
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here / "engine"), str(here), os.environ.get("PYTHONPATH", "")]))
        with open_engine("ray", cpus=4, gpus=0) as engine:
            yield engine
