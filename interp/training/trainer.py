"""The step: micro-batches add to gradients and counters, one all-reduce adds up the workers', Adam moves the weights.

    initialise   once: statistics of the first step's tokens -> how activations are standardised
    micro        gradients and counters += sums over a micro-batch's tokens, for every dictionary
    step         all-reduce of one flat vector; then, alike on every worker, and for each dictionary alone:
                 mean gradient -> without its part along decoder rows -> clipped to `clip_norm` -> Adam -> unit rows

The loss of a step is the sum over its tokens divided by their number, so neither micro-batches nor workers change it.
Gradients are of d_out (of all places) times the loss: then, at the usual norm of 1, clipping makes nearly all steps of
a run of one length, which is what keeps the first, large gradients from slowing Adam for hundreds of steps.

`fit.dtype: bfloat16` is of the products of `micro` alone. `TrainingBuffers` keeps a bfloat16 copy of every weight
matrix, made once a step, and `dictionaries.products` and `kernels` read it where they are given the matrix itself: no
other code of a step knows of it. Activations are standardised, and losses, gradients and their sums are, in float32.

Random numbers are drawn for the first weights only, from the plan's seed: the state of a run has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import EngineError
from interp.training.dictionary_set import DictionarySet
from interp.training.flat import TrainingBuffers
from interp.training.member import Member
from interp.training.metrics import DictionaryMetrics, StepMetrics
from interp.training.optimizers import Optimizer
from interp.training.plan import FitPlan
from interp.training.schedule import decay, default_lr, warm_up
from interp.training.session import Activations
from interp.training.statistics import HookStatistics, first_data


def alone(flat: Tensor) -> None:
    """The all-reduce of a single worker."""


class Trainer:
    """Trains the dictionaries of a plan on what `micro` is given.

    Attributes:
        step_index: the step that comes next.
        tokens_seen: tokens of all workers so far.
        statistics: of the first data, by hook point; None before `initialise`.
    """

    def __init__(
        self,
        plan: FitPlan,
        dictionaries: DictionarySet,
        rank: int = 0,
        world: int = 1,
        all_reduce: Callable[[Tensor], None] = alone,
    ):
        self.plan, self.dictionaries, self.rank, self.world = plan, dictionaries, rank, world
        self.all_reduce = all_reduce
        self.step_index = self.tokens_seen = 0
        self.statistics: dict[str, HookStatistics] | None = None
        self.buffers = TrainingBuffers(dictionaries, getattr(torch, plan.fit.dtype))
        groups = [group for member in dictionaries for group in self.buffers.groups(member)]
        self.optimizer = Optimizer(plan.fit.optimizer, groups)

    def initialise(self, micros: Sequence[Activations]) -> None:
        """Take the statistics of this worker's share of the first step, and of the others'; on every worker."""
        self.statistics = first_data(
            micros,
            self.dictionaries.widths(),
            normalize=self.plan.fit.normalize == "rms",
            device=self.dictionaries.device,
            all_reduce=self.all_reduce,
        )
        for member in self.dictionaries:
            member.start(self.statistics)

    def micro(self, acts: Activations) -> None:
        """Add one micro-batch of raw activations to the step."""
        statistics = self._started()
        standardised = {hook: known.standardise(acts[hook]) for hook, known in statistics.items()}
        penalty = warm_up(self.step_index, self.plan.n_steps, self.plan.fit.warmup)
        self.buffers.refresh()
        for member in self.dictionaries:
            member.prepare(self.step_index)
            member.micro(standardised, self.buffers.counters(member), penalty)
        self.buffers.tokens.add_(len(next(iter(acts.values()))))

    def step(self, stop: bool = False) -> StepMetrics:
        """End the step; on every worker. `stop` asks all of them to stop after it.

        Raises:
            EngineError: the workers had no tokens, or a loss is not finite.
        """
        self._started()
        self.buffers.stop.fill_(float(stop))
        self.all_reduce(self.buffers.sums)
        tokens, stops = int(self.buffers.tokens.item()), self.buffers.stop.item()
        if not tokens:
            raise EngineError(f"step {self.step_index} had no tokens")
        metrics = {member.key: self._finish(member, tokens) for member in self.dictionaries}
        self.optimizer.step()
        for member in self.dictionaries:
            member.constrain_()
        self.buffers.weights_changed()
        self.buffers.sums.zero_()
        self.tokens_seen += tokens
        self.step_index += 1
        return StepMetrics(self.step_index - 1, tokens, self.tokens_seen, metrics, stops > 0)

    # --- what a resume needs

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the steps to come depend on: tensors, and values that JSON holds exactly.

        Both are kept by member: of `name/at`, tensors are named `name/at/...` and values are `members[name/at]`. So
        the states of workers that train different members of a plan can be put together, and dealt out again.
        """
        statistics = self._started()
        tensors: dict[str, Tensor] = {}
        members = {}
        for member in self.dictionaries:
            tensors |= {f"{member.key}/{name}": value for name, value in member.state().items()}
            moments = self.optimizer.state(member.key)
            tensors |= {f"{member.key}/optimizer/{name}": value for name, value in moments.items()}
            known = {hook: statistics[hook] for hook in member.target.config.widths}
            tensors |= {f"{member.key}/mean/{hook}": of_hook.mean for hook, of_hook in known.items()}
            hooks = {hook: {"scale": of_hook.scale, "variance": of_hook.variance} for hook, of_hook in known.items()}
            members[member.key] = {"error_variance": member.values(), "hooks": hooks}
        values = {
            "plan": _identity(self.plan),
            "step": self.step_index,
            "tokens_seen": self.tokens_seen,
            "members": members,
        }
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take up what `state` gave; of other members than its own a trainer reads nothing.

        Raises:
            EngineError: it is the state of another plan.
        """
        self.check_plan(values["plan"])
        device = self.dictionaries.device
        self.statistics = {
            hook: HookStatistics(tensors[f"{m.key}/mean/{hook}"].to(device), known["scale"], known["variance"])
            for m in self.dictionaries
            for hook, known in values["members"][m.key]["hooks"].items()
        }
        for member in self.dictionaries:
            member.start(self.statistics)
            member.load_state({name: tensors[f"{member.key}/{name}"] for name in member.state()})
            member.load_values(values["members"][member.key]["error_variance"])
            prefix = f"{member.key}/optimizer/"
            moments = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.optimizer.load_state(member.key, moments)
        self.step_index, self.tokens_seen = values["step"], values["tokens_seen"]
        self.buffers.weights_changed()
        self.buffers.sums.zero_()

    def check_plan(self, identity: Mapping[str, Any]) -> None:
        """See that a checkpoint, which names its plan, belongs to this one.

        Raises:
            EngineError: it does not.
        """
        found, expected = _decisive(identity), _decisive(_identity(self.plan))
        if found != expected:
            raise EngineError(
                "a checkpoint belongs to another fit",
                value=_first_difference(found, expected),
                remedy="remove the checkpoint, or go back to the study that made it",
            )

    # --- parts of a step

    def _finish(self, member: Member, tokens: int) -> DictionaryMetrics:
        """Ready one dictionary's gradient for Adam, take in its counters, and say how it does."""
        norm, lr = self._ready_gradient(member, tokens), self._set_lr(member)
        figures = member.finish(self.buffers.counters(member), tokens, self.step_index)
        if not (math.isfinite(figures["loss"]) and math.isfinite(norm)):
            raise EngineError(
                f"the loss of {member.key} is not finite in step {self.step_index}",
                value=f"loss {figures['loss']}, gradient norm {norm}",
                remedy="lower fit.lr, or look for activations that are not finite",
            )
        return DictionaryMetrics(**figures, lr=lr, grad_norm=norm)

    def _ready_gradient(self, member: Member, tokens: int) -> float:
        gradient = self.buffers.gradient(member)
        gradient.mul_(member.d_out / tokens)
        member.ready_gradient_(first=self.step_index == 0)
        norm = gradient.norm().item()
        limit = self.plan.fit.clip_norm
        if limit is not None and norm > limit:
            gradient.mul_(limit / norm)
        return norm

    def _set_lr(self, member: Member) -> float:
        fit, step, n_steps = self.plan.fit, self.step_index, self.plan.n_steps
        lr = fit.lr or default_lr(member.mean_latents, n_steps, fit.optimizer)
        lr *= warm_up(step, n_steps, fit.warmup) * decay(step, n_steps, fit.decay)
        self.optimizer.set_lr(member.key, lr)
        return lr

    def _started(self) -> dict[str, HookStatistics]:
        if self.statistics is None:
            raise EngineError("training has no statistics yet", remedy="call initialise or load_state first")
        return self.statistics


def _identity(plan: FitPlan) -> dict[str, Any]:
    """The plan without what cannot change a result."""
    from interp.spec.canonical import key_spec

    return {**plan.model_dump(mode="json", exclude={"fit"}), "fit": key_spec(plan.fit)}


def _decisive(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what is told of the model and of `interp` for people: the model's fingerprint decides."""
    targets = []
    for target in identity["targets"]:
        config = {name: value for name, value in target["config"].items() if name != "interp_version"}
        model = config.get("model")
        targets.append({**target, "config": {**config, "model": model and model["fingerprint"]}})
    return {**identity, "targets": targets}


def _first_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = [name for name in expected if found.get(name) != expected[name]]
    return f"they differ in {', '.join(names)}"
