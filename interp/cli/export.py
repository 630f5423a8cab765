"""Copy what a run made out of its store, under names that people look for.

<folder>/dictionaries/<name>/<place>/weights.safetensors, config.json
<folder>/evaluation.json
<folder>/graphs/<slug>.json, .safetensors, graph-metadata.json, index.jsonl, .parquet, failed.jsonl, features.parquet
<folder>/graphs/faithfulness/<slug>.json
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.stages.runner import RunSummary
    from interp.store import Artifact, Store


def export_results(summary: RunSummary, store: Store, folder: Path) -> list[Path]:
    """Copy the results of each stage; the places where they are now. What stands there under these names is replaced.

    Raises:
        ArtifactCorrupt: a file of the store was changed.
        OSError: the folder cannot be written.
    """
    made: list[Path] = []
    for stage in summary.stages:
        artifact = store.get(stage.stage, stage.key)
        for name in artifact.names():
            target = _target(stage.stage, name)
            if target is not None:
                made.append(_copy(artifact, name, folder / target))
    return sorted({_shown(path, folder) for path in made})


def _target(stage: str, name: str) -> str | None:
    """Where a file of an artifact goes; None for one that stays in the store."""
    if stage == "fit" and name.endswith(("/weights.safetensors", "/config.json")):
        return f"dictionaries/{name}"
    if stage == "evaluate" and name == "evaluation.json":
        return name
    if stage == "trace" and name.endswith((".json", ".jsonl", ".parquet", ".safetensors")):
        return f"graphs/{name.removeprefix('graphs/')}"
    return None


def _copy(artifact: Artifact, name: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(artifact.local(name), partial)
    partial.replace(target)
    return target


def _shown(path: Path, folder: Path) -> Path:
    """The topmost folder, or the file, below `folder`."""
    return folder / path.relative_to(folder).parts[0]
