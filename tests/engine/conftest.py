"""One Ray for all tests of the engines: it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from interp.engine import Engine, open_engine


@pytest.fixture(scope="package")
def ray_engine() -> Iterator[Engine]:
    # The processes of Ray import the toys and the tiny models by name, as pytest does.
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]))
        with open_engine("ray", cpus=4, gpus=0) as engine:
            yield engine
