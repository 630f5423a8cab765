"""The corpus stage: from a study to an artifact, whatever the order and number of workers, or to a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from interp.corpus import TokenBlocks
from interp.engine import Engine
from interp.engine.local import InProcess
from interp.errors import CorpusError
from interp.plan import make_plan
from interp.spec.study import Study
from interp.stages import corpus as stage
from interp.stages.context import StageContext
from interp.store import Artifact, Store

BYTE = {
    chr(code): index + 2 for index, code in enumerate(sorted([*range(33, 127), *range(161, 173), *range(174, 256)]))
}


@pytest.fixture
def model(byte_tokenizer_path: Path) -> Path:
    """A tokenizer beside a configuration and something that counts as weights: the stage reads no more."""
    if not (byte_tokenizer_path / "model.safetensors").exists():
        save_file({"w": np.zeros(1)}, byte_tokenizer_path / "model.safetensors")
    return byte_tokenizer_path


def study(model: Path, source: Path | str, **corpus: Any) -> Study:
    return Study.model_validate(
        {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": "test"},
            "model": {"source": str(model)},
            "corpus": {"source": str(source), "context": 8, "tokens": 100, "holdout": 20, **corpus},
            "store": "memory://unused",
        }
    )


def run(of: Study, store: Store, engine: Any = None, told: list[dict[str, Any]] | None = None) -> Artifact:
    plan = make_plan(of, store)
    planned = plan.stage("corpus")
    assert planned is not None
    told = [] if told is None else told
    context = StageContext(
        study=plan.study,
        stage=planned,
        engine=engine or InProcess(),
        store=store,
        progress=lambda step, /, **figures: told.append(figures),
    )
    with store.create("corpus", planned.key, spec=planned.spec, inputs=planned.inputs) as out:
        stage.run(context, {}, out)
    return store.get("corpus", planned.key)


def texts(n: int = 30) -> list[str]:
    return [chr(ord("a") + i % 26) * (3 + i % 5) + str(i) for i in range(n)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return path


def parts(artifact: Artifact) -> tuple[list[list[int]], list[list[int]]]:
    train, holdout = (TokenBlocks.open(artifact, part) for part in ("train", "holdout"))
    return train.rows(0, len(train)).tolist(), holdout.rows(0, len(holdout)).tolist()


def test_artifact_holds_the_text(model: Path, jsonl: Path, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    artifact = run(study(model, jsonl, shuffle=False), Store.open(tmp_path / "store"), told=told)
    train, holdout = parts(artifact)
    stream = [token for text in texts() for token in [0, *(BYTE[letter] for letter in text)]]
    assert [token for row in holdout for token in row][:20] == stream[:20]
    # The document that the held-out budget cut is in neither part from there on.
    start = next(i for i in range(20, len(stream)) if stream[i] == 0)
    assert [token for row in train for token in row][:100] == stream[start : start + 100]
    summary = artifact.json("corpus.json")
    assert (summary["train_tokens"], summary["holdout_tokens"], summary["context"]) == (100, 20, 8)
    assert (summary["n_train_blocks"], summary["n_holdout_blocks"]) == (13, 3)
    assert (summary["bos_id"], summary["separator"], summary["pad_id"], summary["vocab_size"]) == (0, "bos", 1, 258)
    assert summary["tokenizer_revision"] == artifact.manifest.spec["tokenizer"]
    assert sum(summary["documents"].values()) <= 30
    assert told[-1] == {"done": 120, "total": 120, "unit": "tokens"}
    assert not list((tmp_path / "store").rglob("*.i32"))


def test_seed_shuffles_training_contexts_only(model: Path, jsonl: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    base = study(model, jsonl)
    first = parts(run(base, store))
    second = parts(run(base.model_copy(update={"seed": 1}), store))
    assert first[1] == second[1]
    assert first[0] != second[0] and sorted(first[0]) == sorted(second[0])


class OtherPace(InProcess):
    """Reads ahead, as engines with many workers do."""

    def __init__(self, ahead: int):
        self.ahead = ahead

    def map_ordered(self, worker: Any, batches: Iterable[Any], **options: Any) -> Generator[Any]:
        work: Callable[[Any], Any] = worker.start()
        waiting: list[Any] = []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) > self.ahead:
                yield work(waiting.pop(0))
        yield from map(work, waiting)


def test_neither_batches_nor_reading_ahead_change_a_byte(
    model: Path, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.corpus import rows

    manifests = []
    for characters, ahead in ((1 << 18, 0), (1, 0), (25, 3)):
        monkeypatch.setattr(
            stage, "batched", lambda stream, characters=characters: rows.batched(stream, characters=characters)
        )
        artifact = run(study(model, jsonl), Store.open(tmp_path / f"{characters}-{ahead}"), OtherPace(ahead))
        manifests.append({name: record.sha256 for name, record in artifact.manifest.files.items()})
    assert manifests[0] == manifests[1] == manifests[2]


def test_reading_stops_when_the_budget_is_full(model: Path, tmp_path: Path) -> None:
    """An unreadable row that lies behind the budget is never reached."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": letter * 100_000}) + "\n" for letter in "abcdefgh") + "no JSON\n")
    run(study(model, path), Store.open(tmp_path / "store"))
    with pytest.raises(CorpusError, match="row 9"):
        run(study(model, path, tokens=1_000_000), Store.open(tmp_path / "store"))


def test_too_small_a_corpus_leaves_nothing(model: Path, jsonl: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with pytest.raises(CorpusError, match=r"too small(.|\n)*corpus\.tokens to at most"):
        run(study(model, jsonl, tokens=5000), store)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.suffix in (".safetensors", ".i32")]
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_the_largest_possible_budget_is_the_one_that_the_error_names(model: Path, jsonl: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as caught:
        run(study(model, jsonl, tokens=5000), Store.open(tmp_path / "store"))
    at_most = int(str(caught.value).split("corpus.tokens to at most ")[1].split(",")[0])
    artifact = run(study(model, jsonl, tokens=at_most), Store.open(tmp_path / "store"))
    assert TokenBlocks.open(artifact, "train").tokens == at_most


def test_a_tokenizer_of_another_model_is_refused(model: Path, jsonl: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for file in model.iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(CorpusError, match=r"0 to 19(.|\n)*model\.tokenizer"):
        run(study(small, jsonl), Store.open(tmp_path / "store"))


def test_held_out_and_training_text_of_the_standard_library_are_apart(model: Path, tmp_path: Path) -> None:
    of = study(model, "builtin://python-stdlib", context=128, tokens=200_000, holdout=20_000)
    artifact = run(of, Store.open(tmp_path / "store"))
    train, holdout = parts(artifact)
    assert not {tuple(row) for row in train} & {tuple(row) for row in holdout}
    assert len(train) == -(-200_000 // 128)


@pytest.mark.s3
def test_corpus_on_s3(model: Path, tmp_path: Path, s3_env: Any, s3_url: str) -> None:
    import gzip

    import fsspec

    with fsspec.open(f"{s3_url}/texts/a.jsonl.gz", "wb") as file:
        file.write(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts()).encode()))
    local = tmp_path / "texts" / "a.jsonl"
    local.parent.mkdir()
    local.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    remote = run(study(model, f"{s3_url}/texts"), Store.open(f"{s3_url}/store"))
    assert parts(remote) == parts(run(study(model, local.parent), Store.open(tmp_path / "store")))


@pytest.mark.ray
@pytest.mark.slow
def test_actors_change_nothing(ray_engine: Engine, model: Path, tmp_path: Path) -> None:
    of = study(model, "builtin://python-stdlib", context=128, tokens=1_000_000, holdout=100_000)
    here = run(of, Store.open(tmp_path / "here"))
    parallel = of.model_copy(update={"fit": of.fit.model_copy(update={"harvesters": 2})})
    on_ray = run(parallel, Store.open(tmp_path / "ray"), ray_engine)
    assert on_ray.manifest.files == here.manifest.files
