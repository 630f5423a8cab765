"""Study -> plan: which artifacts it takes, the key of each, what is there already, what the rest will cost."""

from __future__ import annotations

from interp.plan.cost import Cost
from interp.plan.make import check_places, make_plan, places_in
from interp.plan.plan import Plan, PlannedStage
from interp.plan.revisions import Borrowed, Revisions, find_revisions
from interp.plan.shapes import ModelShape, shape_of
from interp.plan.versions import VERSIONS

__all__ = [
    "VERSIONS",
    "Borrowed",
    "Cost",
    "ModelShape",
    "Plan",
    "PlannedStage",
    "Revisions",
    "check_places",
    "find_revisions",
    "make_plan",
    "places_in",
    "shape_of",
]
