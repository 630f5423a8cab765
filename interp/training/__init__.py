"""Training of dictionaries: the plan of a fit, the step, the resumable state, the loop."""

from __future__ import annotations

from interp.training.dictionary_set import DictionarySet
from interp.training.loop import fit_loop
from interp.training.metrics import DictionaryMetrics, MetricsLog, StepMetrics
from interp.training.plan import FitPlan, FitTarget, WorkerPlace, fit_plan
from interp.training.session import FitSession, InMemorySession
from interp.training.trainer import Trainer

__all__ = [
    "DictionaryMetrics",
    "DictionarySet",
    "FitPlan",
    "FitSession",
    "FitTarget",
    "InMemorySession",
    "MetricsLog",
    "StepMetrics",
    "Trainer",
    "WorkerPlace",
    "fit_loop",
    "fit_plan",
]
