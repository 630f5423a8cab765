"""Blocks of the stream: what is packed comes out bit for bit, where it lies, or says why not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.engine.microbatches import Bundle, MicroBatch
from interp.engine.ray.blocks import OutOfPlace, failed, packed, unpacked
from interp.errors import EngineError, ModelMismatch

WIDTHS = {"layers.0.mlp_in": 5, "layers.0.mlp_out": 3}
BUNDLE = Bundle(7, (MicroBatch(2, 0, 16), MicroBatch(2, 32, 41)))


def activations(dtype: torch.dtype) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    whole = [[torch.randn(20, width, generator=generator).to(dtype) for width in WIDTHS.values()] for _ in range(2)]
    return [[values[: micro.tokens] for values in one] for one, micro in zip(whole, BUNDLE.micros, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_survive_the_stream(dtype: torch.dtype) -> None:
    micros = activations(dtype)
    block = packed(7, 1, micros)
    found = unpacked(block, BUNDLE, 1, WIDTHS, dtype)
    again = unpacked(block, BUNDLE, 1, WIDTHS, dtype)
    for ours, twice, theirs in zip(found, again, micros, strict=True):
        for hook, expected in zip(WIDTHS, theirs, strict=True):
            assert ours[hook].dtype == dtype and torch.equal(ours[hook], expected)
            assert ours[hook].data_ptr() == twice[hook].data_ptr(), "it is read without a copy"


def test_a_bundle_without_tokens_is_a_block_too() -> None:
    assert unpacked(packed(9, 1, []), Bundle(9, ()), 1, WIDTHS, torch.float32) == []


def test_what_is_not_the_next_bundle_is_noticed() -> None:
    block = packed(7, 1, activations(torch.float32))
    with pytest.raises(OutOfPlace, match="bundle 7 of shard 1 arrived instead of 8"):
        unpacked(block, Bundle(8, BUNDLE.micros), 1, WIDTHS, torch.float32)
    with pytest.raises(OutOfPlace, match="ended before bundle 7"):
        unpacked(None, BUNDLE, 1, WIDTHS, torch.float32)
    with pytest.raises(EngineError, match="another size"):
        unpacked(block, BUNDLE, 1, WIDTHS, torch.bfloat16)
    with pytest.raises(ModelMismatch, match="not this one"):
        unpacked(list(failed(7, 2, ModelMismatch("not this one")))[1], BUNDLE, 1, WIDTHS, torch.float32)


def test_another_shards_block_of_the_same_size_is_noticed() -> None:
    with pytest.raises(OutOfPlace, match="bundle 7 of shard 1 arrived instead of 7 of shard 0"):
        unpacked(packed(7, 1, activations(torch.float32)), BUNDLE, 0, WIDTHS, torch.float32)


def test_a_bundle_that_came_to_nothing_is_told_to_every_shard() -> None:
    blocks = list(failed(7, 3, ModelMismatch("not this one")))
    assert [block["shard"][0].as_py() for block in blocks] == [0, 1, 2]
