"""Study -> plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.plan import specs
from interp.plan.cost import Cost, activations_cost, corpus_cost, evaluate_cost, fit_cost, trace_cost
from interp.plan.keys import stage_key
from interp.plan.places import Place, placed, places_of, require_enough_latents
from interp.plan.plan import Plan, PlannedStage
from interp.plan.revisions import Borrowed, Revisions, find_revisions, pinned
from interp.plan.shapes import ModelShape, shape_of
from interp.plan.versions import VERSIONS, Stage
from interp.sources.resolve import read_config
from interp.spec.study import Study

if TYPE_CHECKING:
    from interp.store import Store


def make_plan(study: Study, store: Store | None, revisions: Revisions | None = None) -> Plan:
    """The stages of a study, with keys, costs and what the store already has.

    The corpus is planned if a stage reads it, or if it is all that the study asks for.

    Args:
        store: without one nothing counts as cached.
        revisions: of what the study reads; looked up when absent.

    Raises:
        SourceError, HookError, ModelError, SpecError, StoreError: what the study reads or asks for is not there.
    """
    if revisions is None:
        check_places(study)  # before large files are read for their digests
        revisions = find_revisions(study, store)
    shape = shape_of(revisions.model.config, study.model.family)
    stages = tuple(_Planner(study, revisions, shape, places_in(study, shape), store).stages())
    return Plan(pinned(study, revisions), stages)


def check_places(study: Study) -> tuple[ModelShape, dict[str, tuple[Place, ...]]]:
    """Whether the hook points that a study names are its model's; reads the model's configuration and nothing else."""
    shape = shape_of(read_config(study.model), study.model.family)
    return shape, places_in(study, shape)


def places_in(study: Study, shape: ModelShape) -> dict[str, tuple[Place, ...]]:
    """Where the dictionaries that a study trains go in a model of this shape.

    Raises:
        HookError, SpecError: one of them cannot go where the study says.
    """
    require_enough_latents(study.trained, shape)
    return {dictionary.name: places_of(dictionary, shape) for dictionary in study.trained}


class _Planner:
    """One pass over the stages of a study, in order; each knows the keys of those before it."""

    def __init__(
        self, study: Study, revisions: Revisions, shape: ModelShape, places: specs.Places, store: Store | None
    ):
        self.study, self.revisions, self.shape, self.places, self.store = study, revisions, shape, places, store
        self.sizes = {**places, **{borrowed.name: _borrowed_places(borrowed, shape) for borrowed in revisions.borrowed}}

    def stages(self) -> Iterator[PlannedStage]:
        study, revisions, shape = self.study, self.revisions, self.shape
        corpus: dict[str, str] = {}
        if study.trained or study.evaluate or not study.trace:
            planned = self._stage("corpus", specs.corpus_spec(study, revisions), {}, corpus_cost(study))
            corpus = {"corpus": planned.key}
            yield planned
        fit: PlannedStage | None = None
        if study.trained:
            kept = self._activations(corpus)
            yield from kept
            inputs = {**corpus, **({"activations": kept[0].key} if kept else {})}
            spec = specs.fit_spec(study, revisions, shape, self.places)
            yield (fit := self._stage("fit", spec, inputs, fit_cost(study, shape, list(self.places.values()))))
        if study.evaluate:
            sets = [self.sizes[dictionary.name] for dictionary in study.dictionaries]
            inputs = {**corpus, **self._inputs([d.name for d in study.dictionaries], fit)}
            cost = evaluate_cost(study, shape, sets)
            yield self._stage("evaluate", specs.evaluate_spec(study, revisions, shape), inputs, cost)
        if study.trace and study.traced:
            name = study.traced.name
            cost = trace_cost(study, shape, self.sizes[name], revisions.prompts)
            yield self._stage("trace", specs.trace_spec(study, revisions, shape), self._inputs([name], fit), cost)

    def _activations(self, corpus: Mapping[str, str]) -> list[PlannedStage]:
        """The stage that keeps them, if the study does."""
        if not self.study.fit.cache:
            return []
        spec = specs.activations_spec(self.study, self.revisions, self.shape, self.places)
        cost = activations_cost(self.study, self.shape, list(self.places.values()))
        return [self._stage("activations", spec, corpus, cost)]

    def _inputs(self, names: Sequence[str], fit: PlannedStage | None) -> dict[str, str]:
        return specs.dictionary_inputs(list(names), self.revisions, fit.key if fit else None)

    def _stage(self, stage: Stage, spec: dict[str, Any], inputs: Mapping[str, str], cost: Cost) -> PlannedStage:
        version = VERSIONS[stage]
        key = stage_key(stage, version, spec, inputs)
        cached = self.store is not None and self.store.has(stage, key)
        return PlannedStage(stage, key, version, spec, dict(inputs), cached, cost)


def _borrowed_places(borrowed: Borrowed, shape: ModelShape) -> tuple[Place, ...]:
    """Sizes, for the cost, from the spec of the artifact. What is in a folder is not known before it is loaded."""
    if borrowed.spec is None:
        return ()
    found = next(entry for entry in borrowed.spec["dictionaries"] if entry["name"] == borrowed.name)
    latents = {entry["at"]: entry["latents"] for entry in found["places"]}
    return placed(found["kind"], latents, found["activation"].get("k"), shape)
