"""Whether pods can read what a study names: they see object storage, the hub and what is in the image, not this
machine's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from interp.errors import SpecError
from interp.sources.hub import REPOSITORY
from interp.spec.study import Study
from interp.spec.trace import DirectionTarget
from interp.store.location import parse

_HERE = ("file", "memory", "local")


def require_visible(study: Study) -> None:
    """Refuse a study that only this machine could run; every path of it is told at once.

    Raises:
        SpecError: the store or a source is on this machine.
    """
    store = parse(study.store)
    if store.scheme != "s3":
        raise SpecError(
            "the study's store is on this machine, where pods cannot reach it",
            value=f"store: {study.store}",
            expected="s3://bucket/prefix",
            remedy="set `store` to a bucket that both this machine and pods reach (AWS_ENDPOINT_URL names its server: "
            "in the environment here, in the profile's env there)",
        )
    local = [(path, source) for path, source in _sources(study) if _is_local(source)]
    if local:
        raise SpecError(
            "the study reads files of this machine, which pods cannot see",
            value="; ".join(f"{path}: {source}" for path, source in local),
            expected="builtin://name, hf://org/name or s3://bucket/path",
            remedy="copy them to the bucket and name them there; prompts can also stand in the study itself, as a list",
        )


def _sources(study: Study) -> Iterator[tuple[str, str]]:
    yield "model.source", study.model.source
    if study.model.tokenizer is not None:
        yield "model.tokenizer", study.model.tokenizer
    if study.corpus is not None:
        yield "corpus.source", study.corpus.source
    for index, dictionary in enumerate(study.dictionaries):
        if dictionary in study.borrowed:
            yield f"dictionaries[{index}].from", getattr(dictionary, "source", "")
    if study.trace is not None and isinstance(study.trace.prompts, str):
        yield "trace.prompts", study.trace.prompts
    if study.trace is not None and isinstance(study.trace.target, DirectionTarget):
        yield "trace.target.direction", study.trace.target.direction


def _is_local(source: str) -> bool:
    scheme, separator, _ = source.partition("://")
    if separator:
        return scheme in _HERE
    # `org/name` is the hub's, where no such folder is here.
    return REPOSITORY.fullmatch(source) is None or Path(source).exists()
