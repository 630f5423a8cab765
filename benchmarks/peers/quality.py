"""How good dictionaries are, measured for all alike by plain PyTorch on the Hugging Face model, with no trainer's code.

FVU           squared error over the variance about the mean, both summed over the held-out tokens, in float64
L0            mean number of latents above 0 of a held-out token
dead          share of the latents that fire neither on the held-out tokens nor on the last 262,144 training tokens
CE recovered  (CE_zero - CE_spliced) / (CE_zero - CE_clean) in nats on held-out tokens, with the reconstruction, or
              zeros, in the place of the block's output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaForCausalLM

ROWS = 32
"""Contexts at once."""
LAST_TRAINING_TOKENS = 262_144


@dataclass
class Judged:
    """One dictionary as plain tensors (see `training.write_plain`), and its sums so far."""

    w_enc: Tensor
    bias: Tensor
    w_dec: Tensor
    b_dec: Tensor
    k: int
    fired: Tensor = field(init=False)
    active: int = 0
    error: float = 0.0
    spliced: float = 0.0

    def __post_init__(self) -> None:
        self.fired = torch.zeros(len(self.w_enc), dtype=torch.bool)

    @classmethod
    def read(cls, path: Path) -> Judged:
        with safe_open(path, framework="pt") as file:
            w_enc, b_enc, w_dec, b_dec = (file.get_tensor(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
            said = file.metadata()
        bias = b_enc - w_enc @ b_dec if int(said["pre_bias"]) else b_enc
        return cls(w_enc, bias, w_dec, b_dec, int(said["k"]))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(activations, latents, reconstruction) of tokens [n, d]."""
        values, latents = torch.topk(F.linear(x, self.w_enc, self.bias), self.k, dim=-1, sorted=False)
        values = values.relu()
        decoded = F.embedding_bag(latents, self.w_dec, per_sample_weights=values, mode="sum")
        return values, latents, decoded + self.b_dec

    def held_out(self, x: Tensor) -> Tensor:
        """Add tokens to the sums of reconstruction; the reconstruction."""
        values, latents, x_hat = self(x)
        self.fired[latents[values > 0]] = True
        self.active += int((values > 0).sum())
        self.error += float((x - x_hat).double().square().sum())
        return x_hat

    def figures(self, count: int, variance: float, clean: float, zero: float) -> dict[str, float]:
        """Of `count` held-out tokens with that variance and those losses, all summed over the tokens."""
        return {
            "fvu": round(self.error / variance, 5),
            "l0": round(self.active / count, 2),
            "dead": round(1 - float(self.fired.float().mean()), 4),
            "ce_clean": round(clean / count, 4),
            "ce_spliced": round(self.spliced / count, 4),
            "ce_zero": round(zero / count, 4),
            "ce_recovered": round((zero - self.spliced) / (zero - clean), 5),
        }


@torch.no_grad()
def judge(
    work: Path, layer: int, files: Mapping[str, Path], *, tokens: int, held_out: int
) -> dict[str, dict[str, Any]]:
    """The figures of each file's dictionary, which reconstructs the output of a block.

    Args:
        tokens: how many of train.npy they were trained on, from its beginning.
        held_out: how many of holdout.npy are used.
    """
    model = LlamaForCausalLM.from_pretrained(work / "model").eval()
    judged = {name: Judged.read(path) for name, path in files.items()}
    train, rows = np.load(work / "train.npy", mmap_mode="r"), np.load(work / "holdout.npy", mmap_mode="r")
    context = rows.shape[1]
    count, mean, squares, clean, zero = 0, torch.zeros(model.config.hidden_size, dtype=torch.float64), 0.0, 0.0, 0.0
    for ids in _batches(rows[: held_out // context]):
        x, loss = _run(model, layer, ids)
        x = x.flatten(0, 1)
        count, mean, squares = count + len(x), mean + x.double().sum(0), squares + float(x.double().square().sum())
        clean += loss * len(x)
        zero += _run(model, layer, ids, torch.zeros_like)[1] * len(x)
        for dictionary in judged.values():
            x_hat = dictionary.held_out(x)
            dictionary.spliced += _run(model, layer, ids, lambda out, x_hat=x_hat: x_hat.view_as(out))[1] * len(x)
    variance = squares - float(mean.square().sum()) / count
    for ids in _batches(train[max(0, tokens - LAST_TRAINING_TOKENS) // context : tokens // context]):
        x = _run(model, layer, ids)[0].flatten(0, 1)
        for dictionary in judged.values():
            values, latents, _ = dictionary(x)
            dictionary.fired[latents[values > 0]] = True
    return {name: each.figures(count, variance, clean, zero) for name, each in judged.items()}


def _batches(rows: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(rows), ROWS):
        yield torch.from_numpy(np.array(rows[start : start + ROWS])).long()


def _run(
    model: LlamaForCausalLM, layer: int, ids: Tensor, change: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, float]:
    """(the block's output before any change, the model's loss)."""
    kept: list[Tensor] = []

    def hook(_: Any, __: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        kept.append(x)
        if change is None:
            return output
        return (change(x), *output[1:]) if isinstance(output, tuple) else change(x)

    with _hooked(model, layer, hook):
        loss = model(ids, labels=ids, use_cache=False).loss
    return kept[0], float(loss)


@contextmanager
def _hooked(model: LlamaForCausalLM, layer: int, hook: Any) -> Iterator[None]:
    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
