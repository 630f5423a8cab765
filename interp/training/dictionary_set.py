"""All dictionaries of a study while they are trained together.

Dictionaries share the activations and nothing else: what one learns does not depend on which others there are. They
train in normalised units (see `statistics`); `folded` gives the ones that read raw activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from interp.dictionaries import CrossLayerConfig, Dictionary, DictionaryConfig
from interp.training.cross_layer import CrossLayerMember
from interp.training.member import Member
from interp.training.plan import FitPlan, FitTarget
from interp.training.single import SingleMember
from interp.training.statistics import HookStatistics

MEMBERS: Mapping[type, type[Member]] = {DictionaryConfig: SingleMember, CrossLayerConfig: CrossLayerMember}
"""How dictionaries of each kind of config train."""


class DictionarySet:
    """The dictionaries of a plan, in its order.

    Args:
        targets: those that are trained here; by default all of them.
    """

    def __init__(self, plan: FitPlan, device: torch.device | str = "cpu", targets: Sequence[FitTarget] | None = None):
        self.plan, self.device = plan, torch.device(device)
        chosen = plan.targets if targets is None else targets
        self.members = tuple(MEMBERS[type(target.config)](target, plan, self.device) for target in chosen)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def widths(self) -> dict[str, int]:
        """Width of each hook point."""
        return {hook: width for member in self for hook, width in member.target.config.widths.items()}

    def folded(self, statistics: Mapping[str, HookStatistics]) -> Iterator[tuple[str, Dictionary]]:
        """By `<name>/<at>`, the dictionaries that read and give raw activations; made one at a time, on the CPU."""
        for member in self:
            yield member.key, member.folded(statistics)
