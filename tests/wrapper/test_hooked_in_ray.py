"""A hooked model inside a Ray actor gives what it gives here."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch
from tiny_models import make, token_ids

from interp.engine import Engine
from interp.errors import HookError
from interp.wrapper import HookedModel


@pytest.mark.ray
def test_a_hooked_model_in_an_actor(tmp_path: Path, ray_engine: Engine) -> None:
    make("split_llama").save_pretrained(tmp_path / "m")
    hook = "layers_last.0.mlp_in"
    expected = HookedModel(tmp_path / "m").run_with_cache(token_ids(), hook)[hook]
    actor = ray.remote(num_cpus=1)(HookedModel).remote(str(tmp_path / "m"))
    found = ray.get(actor.run_with_cache.remote(token_ids(), hook))[hook]
    torch.testing.assert_close(found, expected)
    # The error crosses the process border as what it is, and the actor lives on.
    with pytest.raises(HookError, match="no hook point"):
        ray.get(actor.run_with_cache.remote(token_ids(), "layers_last.9.mlp_in"))
    torch.testing.assert_close(ray.get(actor.run_with_cache.remote(token_ids(), hook))[hook], found)
