"""Where the parts of a fit go: whether the model runs beside the dictionaries, and how many shards these are dealt to.

Pure arithmetic on bytes, asked by the engine before a fit and by whoever plans one. A worker needs

    dictionaries  16 bytes a parameter with Adam (weights, gradients, two moments in float32), 12 with signum (one
                  moment), and 2 for the copy that products in bfloat16 read; of its shard alone
    activations   at its shard's own hook points: its replica's part of the shuffling window or of a step, and a
                  micro-batch; and of a micro-batch the latents
    model         all of its weights, if the worker runs it (colocated): a process loads a model whole

of which RESERVE is kept free. The rule:

    shards   as few as fit, in either mode: those divisors of the workers, from 1 up, are tried at which the replicas of
             a shard (workers / shards) divide the micro-batches of a step
    mode     colocated, if model, dictionaries and activations fit into every worker, and no more than REPEATED of its
             FLOPs are forward passes that other shards repeat; else streamed, if that fits

What the study fixes must fit as well: a mode or shards that do not are refused. Harvesters that share devices with
workers leave each process less of them, so a streamed fit is judged by memory of its own.

Colocated needs no copy of activations between processes and no process that waits for another; but with n shards each
token's forward pass is run n times, where a harvester runs it once and sends each shard its part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from interp.errors import EngineError

Mode = Literal["colocated", "streamed"]

ADAM_BYTES, SIGNUM_BYTES, BFLOAT16_COPY_BYTES = 16, 12, 2
RESERVE = 0.15
"""Share of a device's memory for allocators, kernels' work space and the libraries themselves."""

REPEATED = 0.25
"""Share of a worker's FLOPs that may be forward passes which another shard runs as well."""


@dataclass(frozen=True)
class Needs:
    """What a fit needs, in bytes, and in FLOPs of one token.

    Attributes:
        model: all weights.
        members: of each dictionary, in training, in the plan's order.
        hooks: of each dictionary, of one token at the hook points that it reads.
        working: of a micro-batch: latents and their gradients of the widest dictionary.
        step_tokens, window_tokens: tokens of a step, and of the shuffling window (0 without one), over all workers.
        micro_tokens: of a micro-batch.
        forward_flops, member_flops: of the model, and of all dictionaries forwards and backwards.
    """

    model: int
    members: tuple[int, ...]
    hooks: tuple[Mapping[str, int], ...]
    working: int
    step_tokens: int
    micro_tokens: int
    window_tokens: int = 0
    forward_flops: float = 0.0
    member_flops: float = 1.0

    @property
    def activations(self) -> int:
        """Of one token at all hook points."""
        return self.activations_of(range(len(self.members)))

    @property
    def step_micros(self) -> int:
        """Micro-batches of a step."""
        return self.step_tokens // self.micro_tokens

    def activations_of(self, shard: Iterable[int]) -> int:
        """Of one token at the hook points of some dictionaries, each once."""
        return sum({hook: size for member in shard for hook, size in self.hooks[member].items()}.values())

    @property
    def forward_part(self) -> float:
        """Share of the FLOPs that is the forward pass."""
        return self.forward_flops / (self.forward_flops + self.member_flops)


@dataclass(frozen=True)
class Placement:
    """What was chosen, and why, as a sentence.

    Attributes:
        worker_bytes: what the largest worker needs.
    """

    mode: Mode
    shards: int
    worker_bytes: int
    reason: str


def training_bytes(parameters: int, optimizer: str = "adam", dtype: str = "float32") -> int:
    """Bytes that a dictionary in training takes."""
    each = SIGNUM_BYTES if optimizer == "signum" else ADAM_BYTES
    return parameters * (each + (BFLOAT16_COPY_BYTES if dtype == "bfloat16" else 0))


def deal(costs: Sequence[int], shards: int) -> list[list[int]]:
    """Members dealt to shards: the costliest first, each to whoever has least; of each shard in rising order.

    Raises:
        EngineError: there are more shards than members.
    """
    if shards > len(costs):
        raise EngineError(
            "there are more shards than dictionaries",
            value=f"{shards} shards",
            expected=f"at most {len(costs)}",
            remedy="lower fit.shards: a dictionary is trained whole in one shard",
        )
    dealt: list[list[int]] = [[] for _ in range(shards)]
    loads = [0] * shards
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = min(range(shards), key=lambda shard: (loads[shard], len(dealt[shard]), shard))
        dealt[least].append(index)
        loads[least] += costs[index]
    return [sorted(shard) for shard in dealt]


def even_shards(needs: Needs, workers: int, shards: int | None = None) -> list[int]:
    """The numbers of shards, or the one that is given, at which workers are dealt to shards, and the micro-batches of a
    step to a shard's replicas, evenly."""
    tried = range(1, min(workers, len(needs.members)) + 1) if shards is None else [shards]
    return [n for n in tried if workers % n == 0 and needs.step_micros % (workers // n) == 0]


def alone_bytes(needs: Needs) -> int:
    """What a worker needs, on however many, for the largest of the dictionaries alone."""
    return max(_alone(needs, index) for index in range(len(needs.members)))


def place(
    needs: Needs,
    memory: int,
    workers: int,
    *,
    mode: Literal["auto"] | Mode = "auto",
    shards: int | None = None,
    beside: int | None = None,
) -> Placement:
    """Choose what is left open (`mode` auto, `shards` None); see the module.

    Args:
        memory: bytes of one worker's device.
        beside: bytes of each process's device, worker's or harvester's, when harvesters run on the workers' devices;
            None: harvesters have devices of their own.

    Raises:
        EngineError: `shards` does not divide the workers or is more than there are dictionaries, the replicas of a
            shard do not divide the micro-batches of a step, or it does not fit.
    """
    possible = _possible(needs, workers, shards)
    devices = {"colocated": memory, "streamed": memory if beside is None else beside}
    modes: tuple[Mode, ...] = ("colocated", "streamed") if mode == "auto" else (mode,)
    for chosen in possible:
        fitting = [
            each
            for each in modes
            if _worker_bytes(needs, workers, chosen, each) <= _room(devices[each])
            and (each == "colocated" or beside is None or needs.model <= _room(beside))
        ]
        if fitting:
            return _placement(needs, workers, chosen, fitting, asked=mode != "auto", devices=devices)
    raise _too_large(needs, workers, possible, modes, devices)


def _possible(needs: Needs, workers: int, shards: int | None) -> list[int]:
    """The numbers of shards to try."""
    if shards is not None and workers % shards:
        raise EngineError(
            "workers cannot be dealt evenly to shards",
            value=f"fit.workers={workers}, fit.shards={shards}",
            expected="fit.shards divides fit.workers",
            remedy="change one of them",
        )
    possible = even_shards(needs, workers, shards)
    if not possible:
        raise EngineError(
            "micro-batches cannot be dealt evenly to the replicas of a shard",
            value=f"{needs.step_micros} micro-batches a step, {workers} workers for {len(needs.members)} dictionaries"
            + ("" if shards is None else f" in {shards} shards"),
            expected="workers / shards divides the micro-batches of a step",
            remedy="a smaller fit.micro_tokens, a larger fit.batch_tokens, or another number of workers",
        )
    return possible


def _placement(
    needs: Needs, workers: int, shards: int, fitting: Sequence[Mode], *, asked: bool, devices: Mapping[str, int]
) -> Placement:
    """The better of the modes that fit, with the reason."""
    repeated = needs.forward_flops / (needs.forward_flops + needs.member_flops / shards)
    repeats = shards > 1 and repeated > REPEATED
    mode: Mode = "streamed" if "streamed" in fitting and (repeats or len(fitting) == 1) else "colocated"
    if asked:
        why = "as fit.mode asks"
    elif mode == "streamed" and "colocated" not in fitting:
        why = "the model does not fit beside the dictionaries"
    elif mode == "streamed":
        why = f"{shards} shards would each repeat the forward pass, {repeated:.0%} of a worker's FLOPs"
    elif repeats:
        why = f"harvesters find no room, and {shards} shards repeat the forward pass"
    else:
        why = "model and dictionaries fit into one worker"
    what = f"{_gb(_worker_bytes(needs, workers, shards))} of dictionaries and activations"
    reason = f"{why}: {what}, {_gb(needs.model)} of model, {_gb(devices[mode])} a worker"
    return Placement(mode, shards, _worker_bytes(needs, workers, shards, mode), reason)


def _too_large(
    needs: Needs, workers: int, possible: Sequence[int], modes: Sequence[Mode], devices: Mapping[str, int]
) -> EngineError:
    """Why nothing of what was tried fits, told of the mode that needs least and is possible at all."""
    mode = modes[-1] if devices[modes[-1]] else modes[0]
    room, many = _room(devices[mode]), "s" if workers > 1 else ""
    machine = f"{workers} worker{many} of {_gb(devices[mode])}"
    expected = f"{_gb(room)} a worker: {RESERVE:.0%} stay free"
    least = min(_worker_bytes(needs, workers, shards) for shards in possible)
    if least <= room:
        beside = "beside the dictionaries" if mode == "colocated" else "into a harvester"
        return EngineError(
            f"the model does not fit {beside}",
            value=f"{_gb(needs.model)} of model, {_gb(least)} of dictionaries and activations, {mode}; {machine}",
            expected=expected,
            remedy="leave fit.mode to interp" if mode == "colocated" else "fewer fit.harvesters, or a larger device",
        )
    index = max(range(len(needs.members)), key=lambda index: _alone(needs, index))
    alone = alone_bytes(needs)
    return EngineError(
        "a dictionary alone does not fit into a worker" if alone > room else "the dictionaries do not fit",
        value=f"{_gb(sum(needs.members))} of dictionaries in training, the largest {_gb(needs.members[index])}, "
        f"{_gb(alone - needs.members[index])} for its micro-batch; {machine}",
        expected=expected,
        remedy="fewer latents, optimizer: signum, a smaller micro_tokens"
        if alone > room
        else "more fit.workers (dictionaries are dealt to as many shards), a smaller shuffle_tokens, or fewer latents",
    )


def _alone(needs: Needs, index: int) -> int:
    """What a worker needs for one dictionary, on however many workers."""
    return needs.members[index] + needs.micro_tokens * needs.activations_of([index]) + needs.working


def _room(memory: int) -> int:
    return int(memory * (1 - RESERVE))


def _worker_bytes(needs: Needs, workers: int, shards: int, mode: Mode = "streamed") -> int:
    """Of the largest worker; with the model if it runs it."""
    tokens = max(needs.step_tokens, needs.window_tokens) * shards // workers + needs.micro_tokens
    largest = max(
        sum(needs.members[index] for index in shard) + tokens * needs.activations_of(shard)
        for shard in deal(needs.members, shards)
    )
    return largest + needs.working + (needs.model if mode == "colocated" else 0)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
