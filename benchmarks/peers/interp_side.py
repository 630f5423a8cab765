"""interp's own fit on the same model and token ids, through the engine that a study's `fit` uses.

    python -m benchmarks.peers.interp_side BASE REQUEST.json OUT

The corpus artifact of the study is written here from the ids. Options: `fit` (fields of the study's fit),
`model_dtype`, `engine` (inprocess or ray), `harvest` (measure instead how fast activations come beside the bare forward
pass).

In one process the clock runs from the first forward pass for training, so that loading the model is outside as it is
for the others, to the last optimiser step. On Ray the processes' own figures are read: `steady_tokens_per_s`, from the
first reported step to the last, which is there for one process too.
"""

from __future__ import annotations

import hashlib
import json
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.training import Clock, Request, arguments, finish, token_rows, write_plain
from interp.corpus.tokens import SUMMARY, CorpusSummary, rows_per_shard, write_shards
from interp.dictionaries.autoencoder import SparseAutoencoder
from interp.dictionaries.dictionary import UNCHECKED
from interp.engine import open_engine
from interp.spec.study import Study
from interp.stages.context import StageContext, no_progress
from interp.stages.fit import fit_job
from interp.store import Artifact, Store

PACKAGES = ("interp", "nnsight", "ray")


def study(work: Path, asked: Request, context: int, store: Path) -> Study:
    """One top-k SAE behind each layer; all that the request does not name is a study's default."""
    options = asked.options
    return Study.model_validate(
        {
            "apiVersion": "interp/v1",
            "kind": "Study",
            "metadata": {"name": "benchmark"},
            "model": {"source": str(work / "model"), "dtype": options.get("model_dtype", "float32")},
            "corpus": {"source": "builtin://python-stdlib", "context": context, "tokens": asked.tokens},
            "dictionaries": [
                {
                    "name": "sae",
                    "kind": "sae",
                    "at": [f"layers.{layer}.resid_post" for layer in asked.layers],
                    "activation": {"type": "topk", "k": asked.k},
                    "latents": asked.latents,
                }
            ],
            "fit": {"batch_tokens": asked.batch_tokens, "device": "cpu", **options.get("fit", {})},
            "seed": asked.seed,
            "store": str(store),
        }
    )


def write_corpus(rows: np.ndarray, store: Store, scratch: Path) -> Artifact:
    """The ids as the corpus stage would have written them."""
    key = hashlib.sha256(np.ascontiguousarray(rows)).hexdigest()
    context, per_shard = rows.shape[1], rows_per_shard(rows.shape[1])
    summary = CorpusSummary(
        context=context,
        train_tokens=rows.size,
        holdout_tokens=0,
        rows_per_shard=per_shard,
        bos_id=0,
        separator="bos",
        pad_id=0,
        vocab_size=4096,
        tokenizer_revision="",
        documents={},
    )
    with store.create("corpus", key, spec={"ids": key}, inputs={}) as out:
        for path, shard in write_shards(np.ascontiguousarray(rows, np.int32), "train", scratch, per_shard):
            out.put(path, shard)
        out.write_json(SUMMARY, summary.to_json())
    return store.get("corpus", key)


def time_in_process(clock: Clock) -> None:
    """Start at the first forward pass once the model is there, stop at each step of the trainer."""
    from interp.engine.harvest import Harvester
    from interp.training.trainer import Trainer

    forward, step = Harvester.activations, Trainer.step
    started = False

    @wraps(forward)
    def timed(self: Harvester, *given: Any, **named: Any) -> Any:
        nonlocal started
        if not started:
            _ = self.hooked
            started = True
            clock.start()
        return forward(self, *given, **named)

    @wraps(step)
    def counted(self: Trainer, *given: Any, **named: Any) -> Any:
        result = step(self, *given, **named)
        clock.step()
        return result

    Harvester.activations, Trainer.step = timed, counted  # type: ignore[method-assign]


def steady_rate(rows: list[dict[str, Any]]) -> float | None:
    """Tokens a second from the first reported step to the last; None with fewer than two."""
    seconds = [row["tokens"] / row["tokens_per_s"] for row in rows]
    return (rows[-1]["tokens"] - rows[0]["tokens"]) / (seconds[-1] - seconds[0]) if len(rows) > 1 else None


def fit(work: Path, asked: Request, out: Path) -> dict[str, Any]:
    """Train, write the dictionaries down, and give the figures."""
    rows = token_rows(work, asked)
    store = Store.open(out / "store")
    corpus = write_corpus(rows, store, out)
    study_ = study(work, asked, rows.shape[1], out / "store")
    on_ray = asked.options.get("engine") == "ray"
    clock = Clock(of_torch=False)
    if not on_ray:
        time_in_process(clock)
    with open_engine("ray" if on_ray else "inprocess") as engine:
        context = StageContext(study_, None, engine, store, no_progress)  # type: ignore[arg-type]
        job = fit_job(context, corpus, store.scratch("fit", corpus.key))
        engine.fit(job, no_progress)
    files = job.fetch_result(out / "own")
    for layer in asked.layers:
        sae = SparseAutoencoder.load(out / "own" / "sae" / f"layers.{layer}.resid_post", model=UNCHECKED).eval()
        write_plain(
            out,
            layer,
            sae,
            w_enc=sae.W_enc,
            b_enc=sae.b_enc,
            w_dec=sae.W_dec,
            b_dec=sae.b_dec,
            k=asked.k,
            pre_bias=True,
        )
    reported = [json.loads(line) for line in (out / "own" / "metrics.jsonl").read_text("utf-8").splitlines()]
    steady = steady_rate(reported)
    figures = {"steady_tokens_per_s": None if steady is None else round(steady), "files": len(files)}
    if on_ray:
        return {"tokens": asked.tokens, "tokens_per_s": figures["steady_tokens_per_s"], **figures}
    return {**clock.figures(asked), **figures}


def harvest(work: Path, asked: Request) -> dict[str, Any]:
    """`benchmarks.harvest` on the base model: the share of the bare early-stopped forward that harvesting reaches."""
    from benchmarks.harvest import compare
    from interp.wrapper import HookedModel

    return compare(HookedModel(str(work / "model")), [f"layers.{layer}.resid_post" for layer in asked.layers])


def main() -> None:
    work, asked, out = arguments()
    figures = harvest(work, asked) if asked.options.get("harvest") else fit(work, asked, out)
    finish(out, figures, asked.options, PACKAGES)


if __name__ == "__main__":
    main()
