"""activations: what a model has at some hook points on a corpus' training tokens, kept for every fit that reads it.

    <hook point>/00000.safetensors    SHARD_TOKENS tokens each (`interp.wrapper.cache_files`)
    index.json

Shards go to actors that each hold the model; an actor runs the forward passes of a shard, up to the last hook point,
and puts the shard's files into the artifact itself, batch by batch: nothing of them passes through this process. A
shard that is finished is noted in the scratch, so an interrupted run makes only those that are missing. Forward passes
are over the study's micro-batches, as in a fit that harvests for itself: in the model's dtype both see the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.engine.job import FitJob
from interp.plan.versions import VERSIONS
from interp.stages.context import StageContext
from interp.stages.fit import plan_of
from interp.wrapper.cache_files import INDEX, CacheFile, Column, Index, Shard

if TYPE_CHECKING:
    from interp.engine.base import Device
    from interp.store import Artifact, Part, PartWriter, Writer

VERSION = VERSIONS["activations"]

SHARD_TOKENS = 1 << 16
"""At 4096 dimensions and two bytes half a gigabyte for a hook point: seconds of a GPU, and few enough files."""


@dataclass(frozen=True)
class Cut:
    """Some of the tokens: one shard."""

    number: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def label(self) -> str:
        """By its files' number and by its tokens: in another cut of the corpus (another micro_tokens) the same tokens
        may have another number, and the same number other tokens."""
        return f"{self.number:05d}-{self.start:012d}-{self.stop:012d}"


def cuts(tokens: int, micro_tokens: int) -> Iterator[Cut]:
    """All tokens in order, in whole micro-batches."""
    each = max(1, SHARD_TOKENS // micro_tokens) * micro_tokens
    for number, start in enumerate(range(0, tokens, each)):
        yield Cut(number, start, min(start + each, tokens))


@dataclass(frozen=True)
class HarvestWorker:
    """What an actor needs to make shards.

    Attributes:
        widths: by hook point, in the order of the index.
        dtype: torch's name of the one that is kept.
        revision: of the model.
    """

    job: FitJob
    parts: PartWriter
    widths: Mapping[str, int]
    dtype: str
    revision: str
    device: Device

    def start(self) -> Callable[[Cut], tuple[Part, ...]]:
        return ShardMaker(self)


class ShardMaker:
    """The model in a worker, and the shards that it makes."""

    def __init__(self, worker: HarvestWorker):
        import torch

        from interp.corpus.tokens import TokenBlocks
        from interp.engine.harvest import Harvester

        device = "cuda" if worker.device != "cpu" and torch.cuda.is_available() else "cpu"
        self._worker = worker
        self._harvester = Harvester(worker.job, device)
        self._blocks = TokenBlocks.open(worker.job.corpus, "train")
        self._columns = {hook: Column(width, getattr(torch, worker.dtype)) for hook, width in worker.widths.items()}

    def __call__(self, cut: Cut) -> tuple[Part, ...]:
        """Make a shard, put its files into the artifact, and note that it is done."""
        from interp.store import FileRecord
        from interp.wrapper.cache_files import ShardFiles

        parts, micro = self._worker.parts, self._worker.job.plan.micro_tokens
        with parts.folder() as folder:
            with ShardFiles(folder, cut.number, self._columns, cut.stop - cut.start, self._worker.revision) as shard:
                for start in range(cut.start, cut.stop, micro):
                    stop = min(start + micro, cut.stop)
                    ids = self._blocks.rows(start // self._blocks.context, -(-stop // self._blocks.context))
                    shard.append(self._harvester.activations(ids, stop - start))
            made = tuple(
                parts.put(folder / file.name, file.name, FileRecord(file.bytes, file.sha256))
                for file in shard.files.values()
            )
        parts.finish(cut.label, made)
        return made


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Write the shards that are missing, and the index.

    Raises:
        ModelMismatch: the model is not the one that this was planned for.
        StoreAccessError: the store is full, or cannot be reached.
    """
    spec, fit, corpus = context.stage.spec, context.study.fit, inputs["corpus"]
    plan = plan_of(context, corpus)
    widths = {hook: width for target in plan.targets for hook, width in target.config.widths.items()}
    job = FitJob(plan=plan, model=context.study.model, corpus=corpus, scratch=out.scratch, device=fit.device)
    parts, wanted = out.parts(), list(cuts(spec["tokens"], plan.micro_tokens))
    done = parts.finished()
    missing = [cut for cut in wanted if cut.label not in done]
    tokens = spec["tokens"] - sum(cut.tokens for cut in missing)
    context.progress("start", done=tokens, total=spec["tokens"], unit="tokens")
    ordered = {hook: widths[hook] for hook in spec["hooks"]}
    worker = HarvestWorker(job, parts, ordered, spec["dtype"], spec["model"]["revision"], fit.device)
    if missing:
        made = context.engine.map_ordered(worker, missing, actors=min(fit.harvesters, len(missing)), device=fit.device)
        with closing(made):
            for cut, files in zip(missing, made, strict=True):
                done[cut.label] = files
                tokens += cut.tokens
                context.progress("harvest", done=tokens, total=spec["tokens"], unit="tokens")
    for cut in wanted:
        for part in done[cut.label]:
            out.adopt(part)
    out.write_json(INDEX, _index(worker, wanted, done).to_json())


def _index(worker: HarvestWorker, wanted: Sequence[Cut], done: Mapping[str, Sequence[Part]]) -> Index:
    import torch

    columns = {hook: Column(width, getattr(torch, worker.dtype)) for hook, width in worker.widths.items()}
    shards = [
        Shard(
            cut.tokens,
            {
                part.name.rpartition("/")[0]: CacheFile(part.name, part.record.size, part.record.sha256)
                for part in done[cut.label]
            },
        )
        for cut in wanted
    ]
    return Index(worker.revision, columns, shards, {"corpus": worker.job.corpus.key})
