"""The grammar of hook points: order, globs, aliases, and errors that name what was probably meant."""

from __future__ import annotations

import random

import pytest

from interp.errors import HookError
from interp.spec.hookpoints import SITES, HookPoint, all_hook_points, mlp_pair, mlps, parse, select

SPLIT = all_hook_points([("layers_first", 2), ("layers_last", 12)], adapter=True)
LLAMA = all_hook_points([("layers", 12)], adapter=False)
PARALLEL = all_hook_points([("layers", 3)], adapter=False, parallel=True)


def test_execution_order_of_a_split_model() -> None:
    assert SPLIT[0] == "embed"
    assert SPLIT[1 : 1 + len(SITES)] == tuple(f"layers_first.0.{site}" for site in SITES)
    assert (
        SPLIT.index("layers_first.1.resid_post") < SPLIT.index("adapter_out") < SPLIT.index("layers_last.0.resid_pre")
    )
    assert SPLIT[-2:] == ("final_norm", "logits")
    assert len(SPLIT) == 4 + 14 * len(SITES)
    assert "adapter_out" not in LLAMA


def test_layers_are_ordered_as_numbers_not_as_text() -> None:
    assert parse("layers.2.resid_post") < parse("layers.10.resid_pre")


def test_every_name_parses_to_itself_and_sorting_restores_the_order() -> None:
    shuffled = list(SPLIT)
    random.Random(0).shuffle(shuffled)
    assert [point.name for point in sorted(map(parse, shuffled))] == list(SPLIT)
    assert select(["*.*.*", "*"], shuffled) == SPLIT


def test_a_parallel_block_has_no_resid_mid() -> None:
    assert not any(name.endswith("resid_mid") for name in PARALLEL)
    assert len(PARALLEL) == 3 + 3 * (len(SITES) - 1)
    with pytest.raises(HookError, match=r"layers\.1\.resid_mid"):
        select("layers.1.resid_mid", PARALLEL)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hook_embed", "embed"),
        ("blocks.3.hook_resid_pre", "layers.3.resid_pre"),
        ("blocks.3.attn.hook_pattern", "layers.3.attn_pattern"),
        ("blocks.3.hook_attn_out", "layers.3.attn_out"),
        ("blocks.3.hook_resid_mid", "layers.3.resid_mid"),
        ("blocks.3.mlp.hook_in", "layers.3.mlp_in"),
        ("blocks.11.hook_mlp_out", "layers.11.mlp_out"),
        ("blocks.3.hook_resid_post", "layers.3.resid_post"),
    ],
)
def test_transformer_lens_names(alias: str, name: str) -> None:
    assert parse(alias).name == name
    assert select(alias, LLAMA) == (name,)


def test_transformer_lens_globs() -> None:
    assert select("blocks.*.hook_resid_post", LLAMA) == tuple(f"layers.{i}.resid_post" for i in range(12))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("blocks.3.hook_mlp_in", "mlp_in"),
        ("blocks.3.ln1.hook_normalized", "attn_in"),
        ("blocks.3.ln2.hook_normalized", "mlp_in"),
        ("blocks.3.mlp.hook_out", "mlp_out"),
        ("ln_final.hook_normalized", "final_norm"),
    ],
)
def test_names_of_transformer_lens_that_mean_another_place_are_told_apart(name: str, ours: str) -> None:
    with pytest.raises(HookError, match=f"{ours} is what") as raised:
        parse(name)
    assert "stands before" in str(raised.value)


@pytest.mark.parametrize("name", ["blocks.3.hook_mlp_in", "layers.03.mlp_in", "layers.-1.mlp_in", "layer.0.mlp_in", ""])
def test_what_is_no_hook_point(name: str) -> None:
    with pytest.raises(HookError):
        parse(name)


def test_the_place_of_a_transcoder_is_no_hook_point_and_the_error_says_what_is() -> None:
    with pytest.raises(HookError, match=r"layers\.0\.mlp_in or layers\.0\.mlp_out"):
        parse("layers.0.mlp")


def test_globs_match_per_segment() -> None:
    assert select("layers_*.1.mlp_in", SPLIT) == ("layers_first.1.mlp_in", "layers_last.1.mlp_in")
    assert select("layers_last.[0-2].resid_post", SPLIT) == tuple(f"layers_last.{i}.resid_post" for i in range(3))
    with pytest.raises(HookError):
        select("layers_first.*", SPLIT)  # a star does not cross a dot


def test_a_selection_is_a_set_in_execution_order() -> None:
    patterns = ["layers_last.0.mlp_out", "layers_first.*.mlp_out", "layers_first.0.*_out"]
    assert select(patterns, SPLIT) == (
        "layers_first.0.attn_out",
        "layers_first.0.mlp_out",
        "layers_first.1.mlp_out",
        "layers_last.0.mlp_out",
    )


def test_one_pattern_without_a_match_fails_even_if_others_match() -> None:
    with pytest.raises(HookError) as caught:
        select(["layers.*.mlp_out", "layers.3.mlpout"], LLAMA)
    assert caught.value.value == "layers.3.mlpout"
    assert "layers.3.mlp_out" in str(caught.value.remedy)
    assert "layers.{0..11}" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("layers_first.*.mlp_inn", "layers_first.*.mlp_in"),
        ("layers_frist.1.resid_pots", "layers_first.1.resid_post"),
        ("finalnorm", "final_norm"),
        ("layers_last.12.mlp_in", "layers_last has layers 0 to 11"),
    ],
)
def test_suggestions_keep_the_glob(pattern: str, meant: str) -> None:
    with pytest.raises(HookError) as caught:
        select(pattern, SPLIT)
    assert meant in str(caught.value.remedy)


def test_transcoder_places() -> None:
    assert mlps(PARALLEL) == ("layers.0.mlp", "layers.1.mlp", "layers.2.mlp")
    assert select("layers.*.mlp", mlps(LLAMA))[10:] == ("layers.10.mlp", "layers.11.mlp")
    assert mlp_pair("layers_last.3.mlp") == ("layers_last.3.mlp_in", "layers_last.3.mlp_out")
    with pytest.raises(HookError):
        mlp_pair("layers.3.mlp_in")


def test_a_block_of_which_one_side_is_not_available_is_no_place_of_a_transcoder() -> None:
    assert mlps([name for name in LLAMA if name != "layers.4.mlp_out"]) == tuple(
        f"layers.{i}.mlp" for i in range(12) if i != 4
    )


def test_hook_points_are_values() -> None:
    assert HookPoint("layers", 1, "mlp_in") == parse("layers.1.mlp_in")
    assert len({parse("embed"), parse("hook_embed")}) == 1
