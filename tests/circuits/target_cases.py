"""Models with a tokenizer, directions as files, and features, for the tests of targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import circuit_cases as cases
import numpy as np

from interp.circuits.replacement_model import ReplacementModel
from interp.spec.trace import FeaturePlace, FeaturesTarget

IDS = cases.prompt(6)
INNER = 3


class Words:
    """A tokenizer of words: `t7` is token 7, and more than one word is more than one token."""

    bos_token_id = cases.BOS

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [int(word.removeprefix("t")) for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids)


def model(name: str, **options: Any) -> ReplacementModel:
    rm = cases.replacement_model(name, "relu", skip=True, **options)
    rm.hooked.tokenizer = Words()
    return rm


def block(rm: ReplacementModel, layer: int) -> str:
    return rm.hooked.topology.block_name(layer)


def features(at: str, *latents: int, position: int = -1) -> FeaturesTarget:
    return FeaturesTarget(features=tuple(FeaturePlace(at=at, latent=latent) for latent in latents), position=position)


def direction_files(folder: Path) -> Callable[[int], str]:
    """A random direction of a width, as a file."""

    def write(width: int) -> str:
        path = folder / f"direction-{width}.npy"
        np.save(path, np.random.default_rng(0).normal(size=width).astype(np.float32))
        return str(path)

    return write
