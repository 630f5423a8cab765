"""fit: all dictionaries of a study, trained together on the activations of one forward pass over the corpus.

    <name>/<at>/weights.safetensors, config.json     one folder a dictionary; `<name>/cross-layer/` for one of all MLPs
    metrics.jsonl, tensorboard/                      about 200 steps
    summary.json                                     what was reached

The model is not loaded here: its sizes are read from its configuration, and its weights by the engine's processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.engine.job import FitJob
from interp.errors import SpecError
from interp.plan import shape_of
from interp.plan.versions import VERSIONS
from interp.sources.resolve import resolve_model
from interp.stages.context import StageContext

if TYPE_CHECKING:
    from interp.store import Artifact, Scratch, Writer
    from interp.training.plan import FitPlan

VERSION = VERSIONS["fit"]


def run(context: StageContext, inputs: Mapping[str, Artifact], out: Writer) -> None:
    """Write the dictionaries, and how their training went.

    Raises:
        EngineError: the processes do not fit, or died again and again.
        InterpError: whatever a process met with.
    """
    job = fit_job(context, inputs["corpus"], out.scratch, inputs.get("activations"))
    context.progress(
        "start", done=job.resume_step() * job.plan.batch_tokens, total=job.plan.total_tokens, unit="tokens"
    )
    context.engine.fit(job, context.progress)
    folder = out.path_hint / "fit"
    for name in job.fetch_result(folder):
        out.put(folder / name, name, move=True)


def fit_job(context: StageContext, corpus: Artifact, scratch: Scratch, cache: Artifact | None = None) -> FitJob:
    """What the engine is asked to do; a `cache` of activations is read instead of running the model."""
    study = context.study
    fit = study.fit
    return FitJob(
        plan=plan_of(context, corpus),
        model=study.model,
        corpus=corpus,
        scratch=scratch,
        workers=fit.workers,
        harvesters=fit.harvesters,
        device=fit.device,
        mode=fit.mode,
        shards=fit.shards,
        cache=cache,
    )


def plan_of(context: StageContext, corpus: Artifact) -> FitPlan:
    """Which dictionaries, where, and in which steps; all of it without the model's weights."""
    from interp.dictionaries.config import ModelIdentity
    from interp.training.plan import fit_plan

    study = context.study
    if not study.trained:
        raise SpecError("the study trains no dictionaries", value=study.metadata.name, expected="a part `dictionaries`")
    resolved = resolve_model(study.model)
    shape = shape_of(resolved.config, study.model.family)
    identity = ModelIdentity(source=study.model.source, fingerprint=resolved.revision, family=shape.family)
    return fit_plan(study, hook_names=shape.hook_names, width=shape.width, model=identity, corpus=corpus.key)
