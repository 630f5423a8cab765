"""One dictionary in training, whatever its kind: weights, counters, what a step makes of them.

A kind of dictionary is a subclass: it says which parameters are offsets, what its loss is, and how it is folded. The
places of a dictionary share one optimiser state and one loss; most kinds have one place.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.dictionaries import Dictionary, build_dictionary
from interp.dictionaries.activations import Activation
from interp.dictionaries.codes import Codes
from interp.dictionaries.folding import Standardisation
from interp.training.plan import FitPlan, FitTarget
from interp.training.schedule import k_progress
from interp.training.statistics import HookStatistics

SCALARS = ("loss", "penalty", "aux")


@dataclass(frozen=True)
class MicroLosses:
    """Sums over the tokens of a micro-batch; `total` has the gradient, errors and codes are of each place."""

    total: Float[Tensor, ""]
    squared_errors: Float[Tensor, "places"]
    penalty: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    codes: Sequence[Codes]


class Member(ABC):
    """A dictionary of a plan while it trains, in normalised units.

    Attributes:
        dictionary: with weights in float32.
        tokens_since_fired: of each latent, over all workers; place after place.
        error_variances: of each place, the squared error of one token in the last step.
        target_variances: of each place, all that there is to explain.
        dead: the latents that are dead in this step, and `dead_at` those of each place.
    """

    def __init__(self, target: FitTarget, plan: FitPlan, device: torch.device):
        self.target, self.fit, self.dead_after, self.n_steps = target, plan.fit, plan.dead_after, plan.n_steps
        config = target.config.model_copy(update={"dtype": "float32"})
        self.dictionary: Dictionary = build_dictionary(config, seed=_seed(plan.seed, target.key)).to(device)
        self.places = self.dictionary.places
        self.latents = [place.n_latents for place in self.places]
        self.tokens_since_fired: Int[Tensor, "n_latents"] = torch.zeros(
            sum(self.latents), dtype=torch.int64, device=device
        )
        self.error_variances = self.target_variances = [1.0 for _ in self.places]
        self.find_dead()

    @property
    def key(self) -> str:
        return self.target.key

    # --- what a kind of dictionary says of itself

    @abstractmethod
    def offset_names(self, place: int) -> Sequence[str]:
        """The parameters of a place that are added to, or compared with, pre-activations, if it has them."""

    @abstractmethod
    def activation(self, place: int) -> Activation:
        """How a place chooses its latents."""

    @abstractmethod
    def decoder_biases(self) -> Sequence[nn.Parameter]:
        """What begins at the mean of the targets."""

    @abstractmethod
    def losses(self, acts: Mapping[str, Tensor], penalty: float) -> MicroLosses:
        """The loss on standardised activations."""

    @abstractmethod
    def folded(self, statistics: Mapping[str, HookStatistics]) -> Dictionary:
        """The dictionary that reads and gives raw activations."""

    def ready_gradient_(self, first: bool) -> None:
        """Remove from the step's gradient what the optimiser must not see.

        In the first step decoder biases are at the mean of its very tokens: their gradient is rounding, of which Adam
        would make full steps.
        """
        for bias in self.decoder_biases() if first else ():
            if bias.grad is not None:
                bias.grad.zero_()

    def constrain_(self) -> None:
        """Project the weights onto what is allowed, after an optimiser step."""
        for place in range(len(self.places)):
            self.activation(place).constrain_()

    # --- its parameters

    def groups(self) -> list[tuple[list[str], float]]:
        """Names of parameters, and by how much faster than the first group they learn: weights, then each place's
        offsets.

        A step of Adam changes each entry by about the learning rate: W_enc x then moves by up to sqrt(d) times as much
        as a bias does. Slow biases make the weights carry the threshold of a latent, along the mean of the input,
        where it overshoots and the latent dies. In runs of 0.4 M tokens on a SplitLlama of the built-in model's shape,
        transcoders with centred inputs and this factor ended with an FVU of 0.094 and 1 % dead latents, without both
        with 0.114 and 11 %.
        """
        named = [name for name, _ in self.dictionary.named_parameters()]
        offsets = [[name for name in named if name in self.offset_names(i)] for i in range(len(self.places))]
        weights = [name for name in named if not any(name in of_place for of_place in offsets)]
        factors = [math.sqrt(place.d_in) for place in self.places]
        return [(weights, 1.0), *zip(offsets, factors, strict=True)]

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name, in the order of `groups`."""
        named = dict(self.dictionary.named_parameters())
        return {name: named[name] for names, _ in self.groups() for name in names}

    @property
    def mean_latents(self) -> float:
        """Latents of a place: what the learning rate depends on."""
        return sum(self.latents) / len(self.latents)

    @property
    def d_out(self) -> int:
        """All that it predicts of a token."""
        return sum(place.d_out for place in self.places)

    # --- a step

    def counters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what a step counts, besides gradients."""
        n = len(self.places)
        return {
            "fired": (sum(self.latents),),
            "target_sum": (self.d_out,),
            "squared_error": (n,),
            "target_square": (n,),
            "scalars": (len(SCALARS),),
            "seen": (n, 2),
        }

    def start(self, statistics: Mapping[str, HookStatistics]) -> None:
        """Take in the first data: what counts as all of the variance."""
        self.target_variances = [statistics[place.hook_out].variance for place in self.places]
        self.error_variances = list(self.target_variances)

    def prepare(self, step: int) -> None:
        """Set what depends on the step alone: how many latents a token keeps while k warms up, first d_in of them."""
        progress = k_progress(step, self.n_steps, self.fit.k_warmup)
        for index, place in enumerate(self.places):
            self.activation(index).warm_up_(progress, place.d_in)

    def micro(self, acts: Mapping[str, Tensor], counters: Mapping[str, Tensor], penalty: float) -> None:
        """Add one micro-batch of standardised activations to the gradients and the counters."""
        found = self.losses(acts, penalty)
        found.total.backward()
        targets = [acts[place.hook_out] for place in self.places]
        counters["fired"].add_(torch.cat([codes.fired() for codes in found.codes]))
        counters["target_sum"].add_(torch.cat([y.sum(0) for y in targets]))
        counters["squared_error"].add_(found.squared_errors)
        counters["target_square"].add_(torch.stack([y.square().sum() for y in targets]))
        counters["scalars"].add_(torch.stack((found.total.detach(), found.penalty, found.aux)))
        for place, codes in enumerate(found.codes):
            if (seen := self.activation(place).observe(codes)) is not None:
                counters["seen"][place].add_(seen)

    def finish(self, counters: Mapping[str, Tensor], tokens: int, step: int) -> dict[str, float]:
        """Take in a step's counters; its figures, by the names of `DictionaryMetrics`."""
        means = {name: counter.double() / tokens for name, counter in counters.items() if name != "fired"}
        off_centre = torch.stack([y.square().sum() for y in means["target_sum"].split([p.d_out for p in self.places])])
        fvu = (means["squared_error"] / (means["target_square"] - off_centre)).mean().item()
        self.error_variances = means["squared_error"].tolist()
        self.tokens_since_fired.add_(tokens).masked_fill_(counters["fired"] > 0, 0)
        self.find_dead()
        for place in range(len(self.places)):
            self.activation(place).learn(counters["seen"][place], step)
        l0 = counters["fired"].sum(dtype=torch.float64).item() / tokens / len(self.places)
        scalars = dict(zip(SCALARS, means["scalars"].tolist(), strict=True))
        return {"fvu": fvu, "l0": l0, "dead": len(self.dead) / sum(self.latents), **scalars}

    def find_dead(self) -> None:
        """Set `dead` and `dead_at` from the counters."""
        silent = self.tokens_since_fired >= self.dead_after
        self.dead: Int[Tensor, "n_dead"] = silent.nonzero().squeeze(-1)
        self.dead_at = [part.nonzero().squeeze(-1) for part in silent.split(self.latents)]

    @property
    def revives(self) -> bool:
        """Whether AuxK has something to do in this step."""
        return self.fit.aux_k_coefficient > 0 and len(self.dead) > 0

    # --- what a resume needs

    def state(self) -> dict[str, Tensor]:
        """Weights, thresholds and counters, by name."""
        return {**self.dictionary.state_dict(), "tokens_since_fired": self.tokens_since_fired}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave, in place."""
        for name, own in self.state().items():
            own.copy_(tensors[name])
        self.find_dead()

    def values(self) -> Any:
        """What JSON keeps of it: the error of the last step, one number for one place."""
        return self.error_variances if len(self.places) > 1 else self.error_variances[0]

    def load_values(self, values: Any) -> None:
        """Take up what `values` gave."""
        self.error_variances = list(values) if isinstance(values, Iterable) else [values]


def standardisation(known: HookStatistics) -> Standardisation:
    """What folding has to know of a hook point."""
    return Standardisation(known.mean, known.scale)


def _seed(seed: int, key: str) -> int:
    """A seed of a dictionary's own: the others of the study do not change it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1
