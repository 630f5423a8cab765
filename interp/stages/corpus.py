"""corpus: documents -> tokens -> packed contexts, a held-out part and a training part of exact sizes.

Documents are read here, in their order; actors tokenise them, a batch at a time; they are packed here, in order again,
so that neither the number of actors nor their speed changes a token. Reading stops when the budgets are full.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from interp.corpus.documents import documents
from interp.corpus.packing import Budget, Packer
from interp.corpus.rows import batched
from interp.corpus.tokenizer import Separator, TokenizeWorker
from interp.corpus.tokens import SUMMARY, CorpusSummary, Part, rows_per_shard, write_shards
from interp.errors import CorpusError
from interp.plan.shapes import shape_of
from interp.plan.versions import VERSIONS
from interp.sources.resolve import read_config
from interp.stages.context import StageContext

if TYPE_CHECKING:
    from interp.spec.study import ModelSpec
    from interp.store import Artifact, Writer

VERSION = VERSIONS["corpus"]


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Write `train/`, `holdout/` and `corpus.json`.

    Raises:
        SourceError: the corpus cannot be found or reached.
        CorpusError: it cannot be read, or is smaller than its budgets; nothing has been written then.
    """
    study, spec = context.study, context.study.required_corpus
    worker = TokenizeWorker(study.model)
    tokenizer = worker.load()
    budget = Budget(spec.context, spec.tokens, spec.holdout)
    packer = Packer(budget, Separator.of(tokenizer), out.path_hint, seed=study.seed if spec.shuffle else None)
    _pack(context, worker, packer)
    train, holdout = packer.finish()
    _check_vocabulary(study.model, packer.largest_id)
    parts: tuple[tuple[Part, Any], ...] = (("train", train), ("holdout", holdout))
    per_shard = rows_per_shard(spec.context)
    for part, rows in parts:
        for path, shard in write_shards(rows, part, out.path_hint, per_shard):
            out.put(path, shard, move=True)
    summary = CorpusSummary(
        context=spec.context,
        train_tokens=spec.tokens,
        holdout_tokens=spec.holdout,
        rows_per_shard=per_shard,
        bos_id=packer.separator.id,
        separator=packer.separator.kind,
        pad_id=packer.separator.pad_id,
        vocab_size=len(tokenizer),
        tokenizer_revision=context.stage.spec["tokenizer"],
        documents=packer.counts,
    )
    out.write_json(SUMMARY, summary.to_json())


def _check_vocabulary(model: ModelSpec, largest_id: int) -> None:
    """A tokenizer of another model would fail in every later stage, on whichever context has the first such token."""
    vocabulary = shape_of(read_config(model), model.family).vocab
    if largest_id >= vocabulary:
        raise CorpusError(
            "the tokenizer gives tokens that the model does not have",
            value=f"token {largest_id}",
            expected=f"0 to {vocabulary - 1}",
            remedy="set model.tokenizer to the model's own",
        )


def _pack(context: StageContext, worker: TokenizeWorker, packer: Packer) -> None:
    spec = context.study.required_corpus
    total = spec.tokens + spec.holdout
    tokenized = context.engine.map_ordered(worker, batched(documents(spec)), actors=context.study.fit.harvesters)
    # Closing the stream tells the engine that no more is wanted: it stops reading ahead.
    with closing(tokenized):
        for batch in tokenized:
            packer.add(batch)
            context.progress("tokenise", done=packer.packed, total=total, unit="tokens")
            if packer.full:
                return
