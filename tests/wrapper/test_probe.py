"""The probe: it passes on every row, and every kind of wrong row fails with its field named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import ALL, make, token_ids

from interp.errors import ProbeFailed
from interp.models.families import FAMILIES, Family, Group, Norm, ValueProjection, family_of
from interp.wrapper import HookedModel
from interp.wrapper.probe import probe


@pytest.mark.parametrize("name", ALL)
def test_every_row_is_proved(name: str) -> None:
    report = probe(HookedModel(make(name), prove=False))
    assert max(report.errors.values()) < 1e-5
    assert report.splice_effect > 0.5
    assert {"embedding", "residual stream", "attention", "MLP", "head", "prediction"} < set(report.errors)
    assert ("adapter" in report.errors) == name.startswith("split")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "split_llama_mlp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tolerances_leave_room_for_rounding(name: str, dtype: torch.dtype) -> None:
    report = probe(HookedModel(make(name).to(dtype), prove=False))
    assert max(report.errors.values()) < 0.6 * report.tolerance


def test_a_model_that_uses_sdpa_is_proved_and_left_as_it_was() -> None:
    for name in ("llama", "split_llama"):
        model = make(name)
        model.set_attn_implementation("sdpa")
        hooked = HookedModel(model)
        assert probe(hooked).errors["attention"] < 1e-5
        assert model.config._attn_implementation == "sdpa" and not hooked.computes_patterns
        torch.testing.assert_close(
            hooked.run_with_hooks(token_ids(), {}), HookedModel(make(name)).run_with_hooks(token_ids(), {})
        )


def test_the_probe_changes_no_random_state() -> None:
    hooked = HookedModel(make("llama"))
    before = torch.random.get_rng_state()
    probe(hooked)
    assert torch.equal(before, torch.random.get_rng_state())


def _row(name: str, **block: Any) -> Family:
    family = family_of(make(name).config.model_type)
    return replace(family, block=replace(family.block, **block))


def _mlp(name: str, **parts: Any) -> Family:
    layout = family_of(make(name).config.model_type).block.mlp_parts
    assert layout is not None
    return _row(name, mlp_parts=replace(layout, **parts))


_LLAMA, _GEMMA, _GPT2, _NEOX = (FAMILIES[name] for name in ("llama", "gemma2", "gpt2", "gpt_neox"))
_SPLIT = FAMILIES["split-llama"]

WRONG: dict[str, tuple[str, Family, str]] = {
    "norm without its offset": ("gemma2", replace(_GEMMA, norm=Norm("rms", "eps")), "norm.kind"),
    "norm with an offset that is not there": (
        "llama",
        replace(_LLAMA, norm=Norm("rms_offset", "variance_epsilon")),
        "norm.kind",
    ),
    "rms for layer norm": ("gpt2", replace(_GPT2, norm=Norm("rms", "eps")), "norm.kind"),
    "no such epsilon": ("llama", replace(_LLAMA, norm=Norm("rms", "eps")), "norm.eps"),
    "norms swapped": (
        "llama",
        _row("llama", attn_norm="post_attention_layernorm", mlp_norm="input_layernorm"),
        "order",
    ),
    "norms of a parallel block swapped": (
        "gpt_neox",
        _row("gpt_neox", attn_norm="post_attention_layernorm", mlp_norm="input_layernorm"),
        "order",
    ),
    "attention's post-norm missing": ("gemma2", _row("gemma2", attn_post_norm=None), "attn_post_norm"),
    "the MLP's post-norm missing": ("gemma2", _row("gemma2", mlp_post_norm=None), "mlp_post_norm"),
    "the MLP's post-norm taken for its norm": (
        "gemma2",
        _row("gemma2", mlp_norm="post_feedforward_layernorm"),
        "block.mlp_norm",
    ),
    "a llama's row for gemma": ("gemma2", _LLAMA, "norm.eps"),
    "keys taken for values": ("llama", _row("llama", value=ValueProjection("separate", "k_proj")), "block.value"),
    "a fused projection taken for one of values": (
        "gpt_neox",
        _row("gpt_neox", value=ValueProjection("separate", "query_key_value")),
        "block.value",
    ),
    "gpt2's fusion taken for gpt_neox's": (
        "gpt2",
        _row("gpt2", value=ValueProjection("neox_fused", "c_attn")),
        "block.value",
    ),
    "an output projection the wrong way round": ("gpt2", _row("gpt2", out_transposed=False), "block.out"),
    "a sequential block taken for a parallel one": (
        "gpt_neox_sequential",
        _row("gpt_neox_sequential", parallel=True),
        "block.parallel",
    ),
    "a parallel block taken for a sequential one": ("gpt_neox", _row("gpt_neox", parallel=False), "block.parallel"),
    "gate and up swapped": ("llama", _mlp("llama", gate="up_proj", up="gate_proj"), "mlp_parts"),
    "a gate forgotten": ("gemma2", _mlp("gemma2", gate=None), "mlp_parts"),
    "an MLP the wrong way round": ("gpt2", _mlp("gpt2", transposed=False), "mlp_parts"),
    "an MLP's projections swapped": (
        "gpt_neox",
        _mlp("gpt_neox", up="dense_4h_to_h", down="dense_h_to_4h"),
        "mlp_parts",
    ),
    "no such part of an MLP": ("gpt_neox", _mlp("gpt_neox", act="act_fn"), "mlp_parts"),
    "positions forgotten": ("gpt2", replace(_GPT2, positions=None), "positions"),
    "soft cap forgotten": ("gemma2", replace(_GEMMA, logit_softcap=None), "logit_softcap"),
    "no such module": ("llama", replace(_LLAMA, final_norm="model.ln_f"), "final_norm"),
    "a block's norm taken for the final one": (
        "llama",
        replace(_LLAMA, final_norm="model.layers.0.input_layernorm"),
        "order",
    ),
    "adapter forgotten": ("split_llama", replace(_SPLIT, adapter=None), "adapter"),
    "groups swapped": (
        "split_llama",
        replace(_SPLIT, groups=(Group("layers_first", "layers_last"), Group("layers_last", "layers_first"))),
        "order",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_found_and_its_field_named(case: str) -> None:
    name, family, field = WRONG[case]
    with pytest.raises(ProbeFailed, match=field):
        HookedModel(make(name), family=family)


def test_an_mlp_with_square_projections_the_wrong_way_round_is_found() -> None:
    with pytest.raises(ProbeFailed, match="mlp_parts"):
        HookedModel(make("gpt2", n_inner=32), family=_mlp("gpt2", transposed=False))


def test_a_family_need_not_know_the_parts_of_its_mlps() -> None:
    report = probe(HookedModel(make("llama"), family=_row("llama", mlp_parts=None), prove=False))
    assert "MLP" not in report.errors


def test_a_wrong_row_is_found_in_bfloat16_too() -> None:
    cases = (
        "attention's post-norm missing",
        "the MLP's post-norm missing",
        "keys taken for values",
        "a gate forgotten",
    )
    for case in cases:
        name, family, field = WRONG[case]
        with pytest.raises(ProbeFailed, match=field):
            HookedModel(make(name).bfloat16(), family=family)


def test_a_model_that_is_unlike_its_configuration_is_found() -> None:
    """The row is right, the model is not: an extra scale on what the MLP adds."""
    model = make("llama")
    block = model.model.layers[1]
    plain = block.forward

    def doubled(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * plain(hidden, *args, **kwargs)

    block.forward = doubled
    with pytest.raises(ProbeFailed, match=r"residual stream layers\.1"):
        HookedModel(model)
    assert HookedModel(model, prove=False).topology.n_layers == 3
