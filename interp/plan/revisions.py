"""What a study reads, pinned: the revisions of its model, tokenizer and corpus, its prompts, its borrowed dictionaries.

Looking these up is the only part of planning that touches files, hub or store; the rest is a pure function of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import DictionaryError, ModelMismatch, SpecError
from interp.sources.dictionaries import HUB, HubPlace, dictionary_revision, require_content
from interp.sources.prompts import Prompt, prompts_of
from interp.sources.resolve import ResolvedModel, resolve_model, tokenizer_revision
from interp.sources.revision import corpus_revision, file_revision
from interp.spec.dictionary import FromArtifact
from interp.spec.study import Study
from interp.spec.trace import DirectionTarget

if TYPE_CHECKING:
    from interp.store import Store

ARTIFACT = "artifact://"


@dataclass(frozen=True)
class Borrowed:
    """Dictionaries that another study made.

    Attributes:
        kind: a `fit` artifact of the store, or a folder, here or on the hub.
        key: the artifact's key, or what identifies the folder's content.
        spec: what the artifact was made from; None for a folder, or where there is no store to ask.
        pinned: where the folder is, with the commit of the hub; None: as the study says.
    """

    name: str
    kind: Literal["artifact", "folder"]
    key: str
    spec: dict[str, Any] | None = None
    pinned: str | None = None


@dataclass(frozen=True)
class Revisions:
    """Everything outside the study file that decides its results.

    Attributes:
        direction: sha256 of the file of the direction that a trace explains, if it explains one.
    """

    model: ResolvedModel
    tokenizer: str
    corpus: str | None
    prompts: tuple[Prompt, ...] = ()
    borrowed: tuple[Borrowed, ...] = ()
    direction: str | None = None


def find_revisions(study: Study, store: Store | None) -> Revisions:
    """Look up what a study reads.

    Raises:
        SourceError: a model, corpus or prompt file is not there or cannot be reached.
        ArtifactMissing: a borrowed artifact is not in the store.
        ModelMismatch: borrowed dictionaries were trained on another model.
    """
    model = resolve_model(study.model, fetch=False)
    return Revisions(
        model=model,
        tokenizer=tokenizer_revision(study.model),
        corpus=corpus_revision(study.corpus) if study.corpus else None,
        prompts=tuple(prompts_of(study.trace)) if study.trace else (),
        borrowed=tuple(_borrowed(source, store, model) for source in study.borrowed),
        direction=_direction(study),
    )


def _direction(study: Study) -> str | None:
    target = study.trace.target if study.trace else None
    return file_revision(target.direction) if isinstance(target, DirectionTarget) else None


def pinned(study: Study, revisions: Revisions) -> Study:
    """The study with the hub's branches replaced by the commits that they were, and what its folders held; keys do not
    depend on either."""
    changes: dict[str, Any] = {}
    if revisions.model.kind == "hub":
        changes["model"] = study.model.model_copy(update={"revision": revisions.model.revision})
    if study.corpus and study.corpus.source.startswith("hf://"):
        changes["corpus"] = study.corpus.model_copy(update={"revision": revisions.corpus})
    if found := {one.name: _pins(one) for one in revisions.borrowed if one.kind == "folder"}:
        changes["dictionaries"] = tuple(
            dictionary.model_copy(update=found.get(dictionary.name, {})) for dictionary in study.dictionaries
        )
    return study.model_copy(update=changes) if changes else study


def _pins(borrowed: Borrowed) -> dict[str, str]:
    place = {"source": borrowed.pinned} if borrowed.pinned else {}
    return {"content": borrowed.key, **place}


def _borrowed(source: FromArtifact, store: Store | None, model: ResolvedModel) -> Borrowed:
    if not source.source.startswith(ARTIFACT):
        return _in_files(source)
    if source.format not in (None, "interp"):
        raise SpecError(
            f"dictionary {source.name!r}: an artifact holds what interp wrote",
            value=f"format: {source.format}",
            expected="format: interp, or none",
        )
    if source.content is not None:
        what = f"dictionary {source.name!r}: an artifact's key says its content"
        raise SpecError(what, value=f"content: {source.content}", expected="no content")
    if store is None:
        return Borrowed(source.name, "artifact", _whole_key(source))
    entry = store.find(source.source)
    if entry.stage != "fit":
        what = f"dictionary {source.name!r} names an artifact of another stage"
        raise DictionaryError(what, value=f"{entry.stage}/{entry.key}", expected="an artifact of the stage fit")
    spec = dict(store.get("fit", entry.key).manifest.spec)
    _check_borrowed(source.name, spec, model)
    return Borrowed(source.name, "artifact", entry.key, spec)


def _in_files(source: FromArtifact) -> Borrowed:
    hub = source.source.startswith(HUB)
    if "://" in source.source and not hub and not source.source.startswith("file://"):
        raise SpecError(
            f"dictionary {source.name!r} cannot come from there",
            value=source.source,
            expected="artifact://<key> of the study's store, a folder, or hf://org/name[/folder]",
            remedy="copy the folder here",
        )
    pinned = HubPlace.of(source.source).pinned if hub else None
    key = dictionary_revision(pinned or source.source)
    require_content(source.source, key, source.content)
    return Borrowed(source.name, "folder", key, pinned=pinned)


def _whole_key(source: FromArtifact) -> str:
    key = source.source.removeprefix(ARTIFACT).removeprefix("fit/")
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise SpecError(
            f"dictionary {source.name!r} names its artifact by the first characters of its key",
            value=source.source,
            expected="all 64, where there is no store to look it up in",
            remedy="give the store, or the whole key",
        )
    return key


def _check_borrowed(name: str, spec: dict[str, Any], model: ResolvedModel) -> None:
    names = [dictionary["name"] for dictionary in spec["dictionaries"]]
    if name not in names:
        raise DictionaryError(
            "the artifact has no dictionaries of that name",
            value=name,
            expected=f"one of {', '.join(names)}",
            remedy="give the borrowed dictionaries the name that they have in the artifact",
        )
    if spec["model"]["revision"] != model.revision:
        raise ModelMismatch(
            f"the borrowed dictionaries {name!r} were trained on another model",
            value=f"revision {spec['model']['revision']}",
            expected=f"revision {model.revision}",
            remedy="set model.source (and model.revision) to the model that they were trained on",
        )
