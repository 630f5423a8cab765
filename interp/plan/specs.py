"""What decides each stage's result, as plain data: this is what keys are made of and what manifests show.

    corpus       text by revision, tokenizer by revision, context, budgets, seed          inputs: none
    activations  model by revision, hook points, tokens, dtype                            inputs: corpus
    fit          model by revision, dictionaries at their places, optimisation, seed      inputs: corpus, activations
    evaluate     model, metrics, dictionaries                                             inputs: corpus, dictionaries
    trace        model, tokenizer, prompts by content, dictionaries, attribution          inputs: dictionaries

Activations are an artifact of their own only where the study keeps them (`fit.cache`). Nothing of the dictionaries but
their hook points is in its key, so studies with other dictionaries there share it; that a fit reads them is in its
inputs, and so is their dtype.

The name of the study, sources and paths, worker counts, batches and the store are in none of them. Two spellings of one
thing give one key: globs are expanded, `expansion` is the number of latents that it comes to, and what was left out is
what stands for it (the family that the checkpoint names, whole contexts up to 1024 tokens, all held-out tokens).

Inputs are by role: `corpus`, `activations`, `fit` for the study's own dictionaries, `dictionaries.<name>` for borrowed
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.plan.places import Place
from interp.plan.revisions import Borrowed, Revisions
from interp.plan.shapes import ModelShape
from interp.plan.versions import Stage
from interp.spec.canonical import key_spec
from interp.spec.dictionary import FromArtifact, TrainedDictionary
from interp.spec.hookpoints import parse
from interp.spec.study import Study
from interp.spec.trace import TraceSpec

Places = Mapping[str, tuple[Place, ...]]
"""Places by the name of the dictionaries."""

_BORROWED = "dictionaries."


def stage_of_input(role: str) -> Stage:
    """The stage whose artifact an input is."""
    return "corpus" if role == "corpus" else "activations" if role == "activations" else "fit"


def borrowed_role(name: str) -> str:
    return f"{_BORROWED}{name}"


def corpus_spec(study: Study, revisions: Revisions) -> dict[str, Any]:
    """`format` is not in it: the revision of files has the format of each."""
    corpus = key_spec(study.required_corpus)
    kept = {name: corpus[name] for name in corpus if name not in ("source", "revision", "format")}
    return {**kept, "revision": revisions.corpus, "tokenizer": revisions.tokenizer, "seed": study.seed}


def activations_spec(study: Study, revisions: Revisions, shape: ModelShape, places: Places) -> dict[str, Any]:
    """Hook points in execution order, each once, in whatever order dictionaries name them."""
    hooks = {hook for found in places.values() for place in found for hook in (place.hook_in, place.hook_out)}
    return {
        "model": _model(study, revisions, shape),
        "hooks": sorted(hooks, key=parse),
        "tokens": study.required_corpus.tokens,
        "dtype": cache_dtype(study),
    }


def cache_dtype(study: Study) -> str:
    """The dtype in which a study keeps activations; the model's own where the study does not say."""
    return study.model.dtype if study.fit.cache in (None, "model") else str(study.fit.cache)


def fit_spec(study: Study, revisions: Revisions, shape: ModelShape, places: Places) -> dict[str, Any]:
    optimisation = {name: value for name, value in key_spec(study.fit).items() if name != "cache"}
    return {
        "model": _model(study, revisions, shape),
        "dictionaries": [_trained(dictionary, places[dictionary.name]) for dictionary in study.trained],
        "fit": {**optimisation, "micro_tokens": study.micro_tokens, "shuffle_tokens": study.shuffle_tokens},
        "seed": study.seed,
    }


def evaluate_spec(study: Study, revisions: Revisions, shape: ModelShape) -> dict[str, Any]:
    assert study.evaluate is not None
    return {
        "model": _model(study, revisions, shape),
        "dictionaries": [_used(dictionary, revisions) for dictionary in study.dictionaries],
        "evaluate": {**key_spec(study.evaluate), "tokens": study.evaluate.tokens or study.required_corpus.holdout},
    }


def trace_spec(study: Study, revisions: Revisions, shape: ModelShape) -> dict[str, Any]:
    assert study.trace is not None and study.traced is not None
    return {
        "model": _model(study, revisions, shape),
        "tokenizer": revisions.tokenizer,
        "dictionaries": _used(study.traced, revisions),
        "prompts": [prompt.content() for prompt in revisions.prompts],
        "trace": _attribution(study.trace, revisions),
    }


def _attribution(trace: TraceSpec, revisions: Revisions) -> dict[str, Any]:
    """The content of a direction stands for the path of its file."""
    told = {k: v for k, v in key_spec(trace).items() if k not in ("prompts", "column", "dictionaries")}
    return (
        told
        if revisions.direction is None
        else {**told, "target": {**told["target"], "direction": revisions.direction}}
    )


def _model(study: Study, revisions: Revisions, shape: ModelShape) -> dict[str, Any]:
    return {"revision": revisions.model.revision, "family": shape.family, "dtype": study.model.dtype}


def _trained(dictionary: TrainedDictionary, places: tuple[Place, ...]) -> dict[str, Any]:
    """The name is in it because the artifact's folders have it."""
    told = key_spec(dictionary)
    kept = {name: told[name] for name in ("name", "kind", "activation")}
    if dictionary.matryoshka:
        kept["matryoshka"] = told["matryoshka"]
    return {**kept, "places": [{"at": place.at, "latents": place.latents} for place in places]}


def _used(dictionary: TrainedDictionary | FromArtifact, revisions: Revisions) -> dict[str, Any]:
    """Which dictionaries a stage uses; the content of borrowed folders, the others being inputs.

    The format is not in it: it is told from the content. That the MLPs are kept is, for it is another computation.
    """
    name = dictionary.name
    found = next((borrowed for borrowed in revisions.borrowed if borrowed.name == name), None)
    if found is None:
        return {"name": name, "from": "fit"}
    kept = {"mlp": "kept"} if isinstance(dictionary, FromArtifact) and dictionary.mlp == "kept" else {}
    return {"name": name, "from": found.kind, **({"content": found.key} if found.kind == "folder" else {}), **kept}


def dictionary_inputs(names: list[str], revisions: Revisions, fit: str | None) -> dict[str, str]:
    """The artifacts that hold the dictionaries of these names."""
    by_name: dict[str, Borrowed] = {borrowed.name: borrowed for borrowed in revisions.borrowed}
    inputs: dict[str, str] = {}
    for name in names:
        borrowed = by_name.get(name)
        if borrowed is None:
            assert fit is not None
            inputs["fit"] = fit
        elif borrowed.kind == "artifact":
            inputs[borrowed_role(name)] = borrowed.key
    return inputs
