"""All dictionaries of a study while they are trained together, each with its counters.

Dictionaries share the activations and nothing else: what one learns does not depend on which others there are. They
train in normalised units (see `statistics`); `folded` gives the ones that read raw activations.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.dictionaries import SparseDictionary, build_dictionary, decoder_norm, fold
from interp.dictionaries.folding import Standardisation
from interp.dictionaries.losses import LossScales, losses
from interp.training.plan import FitPlan, FitTarget
from interp.training.statistics import HookStatistics

OFFSETS = ("b_enc", "activation.b_mag", "activation.threshold")
SCALARS = ("squared_error", "target_square", "loss", "penalty", "aux")


class FittedDictionary:
    """One dictionary in training.

    Attributes:
        tokens_since_fired: of each latent, over all workers.
        error_variance: squared error of one token in the last step.
        dead: the latents that are dead in this step.
    """

    def __init__(self, target: FitTarget, plan: FitPlan, device: torch.device):
        self.target, self.fit, self.dead_after = target, plan.fit, plan.dead_after
        config = target.config.model_copy(update={"dtype": "float32"})
        self.dictionary: SparseDictionary = build_dictionary(config, seed=_seed(plan.seed, target.key)).to(device)
        self.tokens_since_fired: Int[Tensor, "n_latents"] = torch.zeros(
            config.n_latents, dtype=torch.int64, device=device
        )
        self.error_variance = self.target_variance = 1.0
        self.find_dead()

    @property
    def key(self) -> str:
        return self.target.key

    @property
    def offset_multiplier(self) -> float:
        """How much faster offsets learn than weights.

        A step of Adam changes each entry by about the learning rate: W_enc x then moves by up to sqrt(d) times as much
        as a bias does. Slow biases make the weights carry the threshold of a latent, along the mean of the input,
        where it overshoots and the latent dies. In runs of 0.4 M tokens on a SplitLlama of the built-in model's shape,
        transcoders with centred inputs and this factor ended with an FVU of 0.094 and 1 % dead latents, without both
        with 0.114 and 11 %.
        """
        return math.sqrt(self.target.config.d_in)

    def offsets(self) -> list[str]:
        """The parameters that are added to, or compared with, pre-activations."""
        return [name for name in self.parameters() if name in OFFSETS]

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name, offsets last."""
        named = dict(self.dictionary.named_parameters())
        return {name: named[name] for name in sorted(named, key=lambda name: name in OFFSETS)}

    def counters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what a step counts, besides gradients."""
        config = self.target.config
        return {"fired": (config.n_latents,), "target_sum": (config.d_out,), "scalars": (len(SCALARS),), "seen": (2,)}

    def start(self, statistics: Mapping[str, HookStatistics]) -> None:
        """Take in the first data: what counts as all of the variance."""
        self.error_variance = self.target_variance = statistics[self.target.config.hook_out].variance

    def micro(self, acts: Mapping[str, Tensor], counters: Mapping[str, Tensor], penalty: float) -> None:
        """Add one micro-batch of standardised activations to the gradients and the counters."""
        config = self.target.config
        x, y = acts[config.hook_in], acts[config.hook_out]
        dead = self.dead if self.fit.aux_k_coefficient > 0 and len(self.dead) else None
        scales = LossScales(self.target_variance, self.error_variance, penalty, self.fit.aux_k_coefficient, dead)
        found = losses(self.dictionary, x, y, scales)
        found.total.backward()
        counters["fired"].add_(found.codes.fired())
        counters["target_sum"].add_(y.sum(0))
        values = (found.squared_error, y.square().sum(), found.total.detach(), found.penalty, found.aux)
        counters["scalars"].add_(torch.stack(values))
        if (seen := self.dictionary.activation.observe(found.codes)) is not None:
            counters["seen"].add_(seen)

    def count(self, fired: Float[Tensor, "n_latents"], tokens: int) -> None:
        """Take in which latents fired in the step's tokens."""
        self.tokens_since_fired.add_(tokens).masked_fill_(fired > 0, 0)
        self.find_dead()

    def find_dead(self) -> None:
        """Set `dead` from the counters."""
        self.dead = (self.tokens_since_fired >= self.dead_after).nonzero().squeeze(-1)

    def state(self) -> dict[str, Tensor]:
        """Weights, thresholds and counters, by name."""
        return {**self.dictionary.state_dict(), "tokens_since_fired": self.tokens_since_fired}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave, in place."""
        for name, own in self.state().items():
            own.copy_(tensors[name])
        self.find_dead()

    def constrain_(self) -> None:
        """Project the weights onto what is allowed, after an optimiser step."""
        if self.dictionary.unit_decoder:
            decoder_norm.normalise_(self.dictionary.W_dec.data)
        self.dictionary.activation.constrain_()


class DictionarySet:
    """The dictionaries of a plan, in its order."""

    def __init__(self, plan: FitPlan, device: torch.device | str = "cpu"):
        self.plan, self.device = plan, torch.device(device)
        self.members = tuple(FittedDictionary(target, plan, self.device) for target in plan.targets)

    def __iter__(self) -> Iterator[FittedDictionary]:
        return iter(self.members)

    def widths(self) -> dict[str, int]:
        """Width of each hook point."""
        configs = [member.target.config for member in self]
        pairs = [(c.hook_in, c.d_in) for c in configs] + [(c.hook_out, c.d_out) for c in configs]
        return {hook: dict(pairs)[hook] for hook in self.plan.hooks}

    def folded(self, statistics: Mapping[str, HookStatistics]) -> dict[str, SparseDictionary]:
        """By `<name>/<at>`, the dictionaries that read and give raw activations."""
        result = {}
        for member in self:
            config = member.target.config
            source, target = statistics[config.hook_in], statistics[config.hook_out]
            result[member.key] = fold(
                member.dictionary,
                Standardisation(source.mean, source.scale),
                Standardisation(target.mean, target.scale),
            )
        return result


def _seed(seed: int, key: str) -> int:
    """A seed of a dictionary's own: the others of the study do not change it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1
