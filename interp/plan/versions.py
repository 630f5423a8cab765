"""The version of each stage. It is part of every key of the stage, and goes up when the same spec would give another
result: what was made before then counts as another artifact."""

from __future__ import annotations

from typing import Literal

Stage = Literal["corpus", "activations", "fit", "evaluate", "trace"]

VERSIONS: dict[Stage, int] = {"corpus": 1, "activations": 1, "fit": 2, "evaluate": 1, "trace": 2}
"""In the order in which they run."""
