"""Copy what a run made out of its store, under names that people look for.

<folder>/dictionaries/<name>/<place>/weights.safetensors, config.json
<folder>/evaluation.json, similarity.json, pareto.svg, pareto-ce.svg, density.svg
<folder>/graphs/<slug>.json, .safetensors, graph-metadata.json, index.jsonl, .parquet, failed.jsonl, features.parquet
<folder>/graphs/faithfulness/<slug>.json

Graphs that an earlier run left in the folder, by its own index there, and that this one does not have are removed: the
index beside the graphs is of these graphs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import StoreError

if TYPE_CHECKING:
    from interp.stages.runner import RunSummary
    from interp.store import Artifact, Store


def export_results(summary: RunSummary, store: Store, folder: Path) -> list[Path]:
    """Copy the results of each stage; the places where they are now. What stands there under these names is replaced.

    Raises:
        ArtifactCorrupt: a file of the store was changed.
        StoreError: the folder has an index of graphs that cannot be read.
        OSError: the folder cannot be written.
    """
    made: list[Path] = []
    for stage in summary.stages:
        artifact = store.get(stage.stage, stage.key)
        targets = {name: target for name in artifact.names() if (target := _target(stage.stage, name)) is not None}
        if stage.stage == "trace":
            # Before the old index is replaced: if this is killed in between, the next run still knows what to remove.
            _remove_earlier(folder, set(targets.values()))
        made += [_copy(artifact, name, folder / target) for name, target in targets.items()]
    return sorted({_shown(path, folder) for path in made})


def _target(stage: str, name: str) -> str | None:
    """Where a file of an artifact goes; None for one that stays in the store."""
    if stage == "fit" and name.endswith(("/weights.safetensors", "/config.json")):
        return f"dictionaries/{name}"
    if stage == "evaluate" and name.endswith((".json", ".svg")):
        return name
    if (
        stage == "trace"
        and not name.startswith("sums/")
        and name.endswith((".json", ".jsonl", ".parquet", ".safetensors"))
    ):
        return f"graphs/{name.removeprefix('graphs/')}"
    return None


def _remove_earlier(folder: Path, wanted: Collection[str]) -> None:
    """Remove what an earlier run copied of its graphs, but for what is written anew."""
    index = folder / "graphs/index.jsonl"
    if not index.exists():
        return
    try:
        slugs = [json.loads(line)["slug"] for line in index.read_text(encoding="utf-8").splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "the folder has an index of graphs that cannot be read",
            value=f"{index}: {error}",
            remedy="empty the folder, or give --out another one",
        ) from error
    forms = ("graphs/{}.json", "graphs/{}.safetensors", "graphs/faithfulness/{}.json")
    names = [form.format(slug) for slug in slugs if Path(slug).name == slug for form in forms]
    for name in (*names, "graphs/features.parquet", "graphs/layers.json"):
        if name not in wanted:
            (folder / name).unlink(missing_ok=True)


def _copy(artifact: Artifact, name: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(artifact.local(name), partial)
    partial.replace(target)
    return target


def _shown(path: Path, folder: Path) -> Path:
    """The topmost folder, or the file, below `folder`."""
    return folder / path.relative_to(folder).parts[0]
