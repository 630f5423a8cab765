"""What the sides of the dictionary benchmark have in common: the request, the clock, and the result as plain tensors.

It runs in a peer's environment: the standard library, torch, numpy and safetensors only.

The clock runs from the entry into a trainer's own loop to its last optimiser step. Imports, loading the model and the
token ids, making the trainer, and writing the result are outside; filling buffers and initialising from data inside.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.peers.usage import cpu_seconds, peak_mib

SAME = 1e-4
"""Of the largest entry of a reconstruction: plain tensors that are further from the trainer's own are wrong."""


@dataclass(frozen=True)
class Request:
    """What is asked of every side alike.

    Attributes:
        layers: 0-based: the output of these blocks is what dictionaries reconstruct.
        warmup_steps: of the learning rate, where a trainer counts them; None: a twentieth of the steps, at most 1,000.
        options: of one side alone.
    """

    tokens: int
    batch_tokens: int
    latents: int
    k: int
    layers: tuple[int, ...]
    threads: int
    seed: int
    warmup_steps: int | None
    options: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Request:
        content = json.loads(path.read_bytes())
        return cls(**{**content, "layers": tuple(content["layers"])})

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2), "utf-8")

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_tokens

    @property
    def warmup(self) -> int:
        return min(1000, self.steps // 20) if self.warmup_steps is None else self.warmup_steps


def arguments() -> tuple[Path, Request, Path]:
    """(the base model's folder, the request, the folder to write to) of this process, its threads set."""
    work, request, out = (Path(argument) for argument in sys.argv[1:4])
    asked = Request.read(request)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    return work, asked, out


def token_rows(work: Path, asked: Request) -> np.ndarray:
    """The contexts to train on, int32 [contexts, context], in their order."""
    rows: np.ndarray = np.load(work / "train.npy", mmap_mode="r")
    wanted = asked.tokens // rows.shape[1]
    if wanted > len(rows):
        raise SystemExit(f"{asked.tokens} tokens are asked for, and {work}/train.npy has {rows.size}")
    return rows[:wanted]


class Clock:
    """Wall and CPU time of training, as the module says.

    Args:
        of_torch: every step of an optimiser of torch counts; otherwise who has it calls `step`.
    """

    def __init__(self, *, of_torch: bool = True) -> None:
        self.steps = 0
        self._started = self._ended = (0.0, 0.0)
        self._peak = 0.0
        if of_torch:
            register_optimizer_step_post_hook(lambda *_: self.step())

    def start(self) -> None:
        """The trainer's loop begins."""
        self.steps, self._started = 0, self._now()

    def step(self) -> None:
        """An optimiser has made a step."""
        self.steps, self._ended, self._peak = self.steps + 1, self._now(), peak_mib()

    def figures(self, asked: Request) -> dict[str, Any]:
        """Refuses a trainer that made another number of steps than was asked for."""
        if self.steps != asked.steps:
            raise SystemExit(f"the trainer made {self.steps} steps, and {asked.steps} were asked for")
        wall, cpu = (end - begin for begin, end in zip(self._started, self._ended, strict=True))
        return {
            "tokens": asked.tokens,
            "wall_s": round(wall, 3),
            "cpu_s": round(cpu, 3),
            "tokens_per_s": round(asked.tokens / wall),
            "tokens_per_cpu_s": round(asked.tokens / cpu),
            "peak_mib": round(self._peak),
        }

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), cpu_seconds()


def write_plain(
    out: Path,
    layer: int,
    own: Callable[[Tensor], Tensor],
    *,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    b_dec: Tensor,
    k: int,
    pre_bias: bool,
) -> None:
    """A top-k dictionary as `W_enc` [latents, d], `b_enc`, `W_dec` [latents, d] and `b_dec`.

    Its activations are the k largest of W_enc (x - b_dec) + b_enc, or of W_enc x + b_enc without a pre-bias, and of
    these what is above 0; its reconstruction W_dec^T a + b_dec. Refused if the trainer's own module, `own`, gives
    another one of random activations.
    """
    tensors = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec}
    plain = {name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}
    _check(own, plain, k, pre_bias)
    save_file(plain, out / f"layer_{layer}.safetensors", metadata={"k": str(k), "pre_bias": str(int(pre_bias))})


@torch.no_grad()
def _check(own: Callable[[Tensor], Tensor], plain: Mapping[str, Tensor], k: int, pre_bias: bool) -> None:
    d = plain["W_enc"].shape[1]
    x = plain["b_dec"] + torch.randn(64, d, generator=torch.Generator().manual_seed(0))
    z = (x - plain["b_dec"] if pre_bias else x) @ plain["W_enc"].T + plain["b_enc"]
    values, latents = z.topk(k, dim=-1)
    x_hat = (values.relu()[..., None] * plain["W_dec"][latents]).sum(1) + plain["b_dec"]
    apart = (own(x).float() - x_hat).abs().max() / x_hat.abs().max()
    if not apart < SAME:
        raise SystemExit(f"as plain tensors the dictionary reconstructs something else, {float(apart):.1e} away")


def finish(out: Path, figures: dict[str, Any], settings: dict[str, Any], packages: tuple[str, ...]) -> None:
    """Write figures.json."""
    versions = {name: version(name) for name in ("torch", "transformers", *packages)}
    content = {**figures, "settings": settings, "versions": versions, "threads": os.environ.get("OMP_NUM_THREADS")}
    (out / "figures.json").write_text(json.dumps(content, indent=2), "utf-8")
