"""Harvest: tokens of a corpus through a hooked model, up to the last hook point that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int32
from numpy import ndarray
from torch import Tensor

from interp.engine.job import FitJob
from interp.errors import ModelMismatch
from interp.models.loading import load_model
from interp.wrapper import HookedModel


class Harvester:
    """The model of a job; it is loaded when it is first needed.

    Args:
        device: where the model runs.
        hooks: the hook points to read; by default all that the job's dictionaries need.
    """

    def __init__(self, job: FitJob, device: str, hooks: Sequence[str] | None = None):
        self.job, self.device = job, device
        self.hooks = job.plan.hooks if hooks is None else tuple(hooks)

    @cached_property
    def hooked(self) -> HookedModel:
        loaded = load_model(self.job.model, device=self.device, attention="sdpa")
        trained_on = {target.config.model.fingerprint for target in self.job.plan.targets if target.config.model}
        if trained_on - {loaded.fingerprint}:
            raise ModelMismatch(
                "the model is not the one that this fit was planned for",
                value=loaded.fingerprint,
                expected=", ".join(sorted(trained_on)),
                remedy="the model has changed since the plan was made: run the study again",
            )
        return HookedModel(loaded)

    def activations(self, ids: Int32[ndarray, "rows context"], tokens: int) -> dict[str, Float[Tensor, "tokens d"]]:
        """One forward pass; the filling after the last of `tokens` is cut off (it is causal, so nothing saw it)."""
        batch = torch.from_numpy(np.array(ids, dtype=np.int64)).to(self.device)
        cache = self.hooked.run_with_cache(batch, self.hooks)
        return {hook: cache[hook].flatten(0, 1)[:tokens] for hook in self.hooks}
