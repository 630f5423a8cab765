"""What a plan reads must be the same where it runs: its keys say what was made of what.

Submitting and running are two machines. A corpus that each machine has of its own (the standard library of its Python),
a model or prompts that were replaced on S3 since, would give results under keys that name others. So the driver plans
the study again, and what is still to be made must get the keys that it was submitted with.
"""

from __future__ import annotations

from interp.cluster.diff import difference
from interp.errors import SpecError
from interp.plan import Plan, make_plan
from interp.store import Store


def require_same_sources(plan: Plan, store: Store) -> None:
    """Refuse a plan of which something that is to be made would be made of other things than the plan says.

    Raises:
        SpecError: with the first fields that differ.
        SourceError: what the study reads is not to be found from here.
    """
    here = make_plan(plan.study, store)
    if not here.to_do:
        return
    missing = {stage.key for stage in plan.stages if not store.has(stage.stage, stage.key)}
    for stage in difference(here, plan).stages:
        if stage.then in missing and stage.fields:
            # Later stages differ by their inputs only: the first one says what it is.
            told = "; ".join(f"{field.path}: planned with {field.then}, here {field.now}" for field in stage.fields[:4])
            raise SpecError(
                f"what the study reads is not the same here as where it was planned (stage {stage.stage})",
                value=told,
                expected="the same model, tokenizer, corpus and prompts on all machines",
                remedy="name sources that are the same everywhere (hf:// with a revision, s3://), or submit the study "
                "again if they were replaced; builtin://python-stdlib is each machine's own Python",
            )
