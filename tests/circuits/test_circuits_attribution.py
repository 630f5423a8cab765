"""The computer: choice of features, independence of batches, targets, and prompts that cannot be traced."""

from __future__ import annotations

import circuit_cases as cases
import pytest
import torch
from torch import Tensor

from interp.circuits.attribution import AttributionComputer, AttributionEdges
from interp.circuits.explained import salient_logits
from interp.circuits.influence import influence_of
from interp.circuits.nodes import NodeKind
from interp.circuits.replacement_model import ReplacementModel
from interp.circuits.selection import most_influential
from interp.circuits.sweep import _near_in_position
from interp.dictionaries import SparseAutoencoder
from interp.dictionaries.config import DictionaryConfig, ModelIdentity
from interp.errors import DictionaryError, ModelError, ModelMismatch, PromptError, SpecError
from interp.spec.trace import LogitsSpec

SOME = ["llama", "gemma2", "gpt2", "gpt_neox", "split_llama_mlp"]


def compute(rm: ReplacementModel, ids: Tensor, **options: object) -> AttributionEdges:
    return AttributionComputer(rm, **options).compute_full_graph(rm.build(ids), ids)  # type: ignore[arg-type]


def dense(edges: AttributionEdges) -> Tensor:
    return edges.edges.to_sparse(len(edges.nodes)).to_dense()


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("max_features", [None, 25])
def test_the_result_does_not_depend_on_the_batch(name: str, max_features: int | None) -> None:
    rm, ids = cases.replacement_model(name, "relu", skip=True), cases.prompt(7)
    one, *others = (compute(rm, ids, max_features=max_features, batch=batch) for batch in (1000, 1, 7))
    for other in others:
        assert torch.equal(one.nodes.features, other.nodes.features)
        assert torch.equal(one.edges.targets, other.edges.targets)
        torch.testing.assert_close(dense(one), dense(other), atol=1e-5, rtol=1e-5)


def test_the_same_prompt_gives_the_same_graph_to_the_bit() -> None:
    first, second = (compute(cases.replacement_model("qwen3", "relu"), cases.prompt(), max_features=20) for _ in "ab")
    assert torch.equal(dense(first), dense(second))
    assert torch.equal(first.nodes.features, second.nodes.features)


@pytest.mark.parametrize("max_features", [20, 60])
@pytest.mark.parametrize("name", SOME)
def test_chosen_features_have_nearly_all_the_influence_that_a_choice_can_have(name: str, max_features: int) -> None:
    rm, ids = cases.replacement_model(name, "relu", skip=True), cases.prompt(8)
    full = compute(rm, ids, max_features=None)
    _, influence, _ = influence_of(full.nodes, full.edges, full.probabilities)
    influence = influence[: full.nodes.n_features]
    place = {tuple(feature): i for i, feature in enumerate(full.nodes.features.tolist())}
    chosen = [place[tuple(feature)] for feature in compute(rm, ids, max_features=max_features).nodes.features.tolist()]
    assert len(chosen) == max_features < full.nodes.n_features
    assert chosen == sorted(chosen)
    assert influence[chosen].sum() >= 0.99 * influence.sort(descending=True).values[:max_features].sum()


@pytest.mark.parametrize("name", SOME)
def test_a_cap_moves_what_is_left_out_into_rest_and_keeps_sums_exact(name: str) -> None:
    rm, ids = cases.replacement_model(name, "relu"), cases.prompt(7)
    full, capped = compute(rm, ids, max_features=None), compute(rm, ids, max_features=15)
    assert (capped.nodes.n_features, capped.n_active) == (15, full.nodes.n_features)
    sums = capped.edges.row_sums()
    assert bool(((sums - capped.pre_activations).abs() <= 1e-4 * capped.pre_activations.abs().clamp(min=1)).all())
    kept = torch.tensor([f in capped.nodes.features.tolist() for f in full.nodes.features.tolist()])
    nodes, new_index = full.nodes.keeping(kept)
    expected = torch.zeros(len(nodes), len(nodes))
    expected.index_put_(
        (new_index[full.edges.target_of_edge.long()], new_index[full.edges.sources.long()]),
        full.edges.weights,
        accumulate=True,
    )
    has_row = capped.edges.targets
    torch.testing.assert_close(dense(capped)[has_row], expected[has_row], atol=1e-5, rtol=1e-5)
    assert bool((dense(capped)[:, nodes.span(NodeKind.REST)] != 0).any())


def test_features_without_any_influence_are_not_chosen() -> None:
    hooked = cases.hooked_model("llama")
    made = cases.transcoders(hooked, "relu")
    with torch.no_grad():
        for transcoder in made[1:]:
            transcoder.b_enc.fill_(-100.0)  # silent: nothing but the logits reads layer 0
        made[0].W_dec[5:] = 0
    edges = compute(ReplacementModel(hooked, made), cases.prompt(), max_features=20)
    assert 0 < edges.nodes.n_features < 20 < edges.n_active
    assert int(edges.nodes.features[:, 2].max()) < 5


def test_equal_influences_are_told_apart_by_node_order_not_by_rounding() -> None:
    influence = torch.tensor([0.1, 0.3 * (1 - 1e-7), 0.3, 0.3 * (1 + 1e-7), 0.0, 0.2], dtype=torch.float64)
    assert most_influential(influence, 2).tolist() == [1, 2]
    assert most_influential(influence, 4).tolist() == [1, 2, 3, 5]
    assert most_influential(influence, 9).tolist() == [0, 1, 2, 3, 5]


def test_sweeps_are_cut_where_positions_would_be_carried_along_for_nothing() -> None:
    positions = sorted([*range(64), *range(64), *range(64), *[40] * 200])
    order = torch.arange(len(positions)) + 7
    sweeps = list(_near_in_position(order, positions, batch=100))
    assert torch.equal(torch.cat(sweeps), order)
    for which in sweeps:
        assert len(which) <= 100
        first, last = positions[int(which[0]) - 7], positions[int(which[-1]) - 7]
        assert last + 1 <= 1.25 * (first + 1) or len(which) <= 32
    assert len(sweeps) < 15


def test_targets_are_the_most_probable_logits_up_to_their_mass() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.05, 0.05])
    assert salient_logits(probabilities, LogitsSpec(max=10, mass=0.7)).tolist() == [1, 2, 3]
    assert salient_logits(probabilities, LogitsSpec(max=2, mass=0.95)).tolist() == [1, 2]
    assert salient_logits(probabilities, LogitsSpec(max=10, mass=0.4)).tolist() == [1]
    assert salient_logits(probabilities, LogitsSpec(max=10, mass=1.0)).tolist() == [1, 2, 3, 0, 4, 5]


def test_the_state_must_be_of_the_prompt() -> None:
    rm = cases.replacement_model("llama")
    state = rm.build(cases.prompt())
    with pytest.raises(PromptError, match="another prompt"):
        AttributionComputer(rm).compute_full_graph(state, cases.prompt(seed=9))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(0, dtype=torch.long), "empty"),
        ([], "empty"),
        (torch.zeros(1, 0, dtype=torch.long), "empty"),
        (torch.zeros(2, 3, dtype=torch.long), "one prompt"),
        (torch.tensor([1, 101]), "does not know"),
        (torch.tensor([1, -1]), "does not know"),
        (torch.tensor([1.0, 2.0]), "no token ids"),
        (torch.arange(1, 10), "too long"),
    ],
)
def test_a_prompt_that_cannot_be_traced_is_refused_with_its_reason(ids: Tensor, message: str) -> None:
    rm = cases.replacement_model("llama", max_tokens=8)
    with pytest.raises(PromptError, match=message):
        rm.build(ids)


def test_a_transcoder_of_another_model_is_refused() -> None:
    ours, other = cases.hooked_model("llama"), cases.hooked_model("llama", seed=1)
    with pytest.raises(ModelMismatch):
        ReplacementModel(ours, cases.transcoders(other))


def test_what_cannot_stand_for_an_mlp_is_refused() -> None:
    hooked = cases.hooked_model("llama")
    made = cases.transcoders(hooked)
    with pytest.raises(DictionaryError, match="one for each layer"):
        ReplacementModel(hooked, made[:2])
    with pytest.raises(DictionaryError, match="does not stand for"):
        ReplacementModel(hooked, {"layers.1.mlp": made[0]})
    with pytest.raises(DictionaryError, match="does not have"):
        ReplacementModel(hooked, {"layers.7.mlp": made[0]})
    with pytest.raises(DictionaryError, match="no transcoders"):
        ReplacementModel(hooked, {})
    with pytest.raises(DictionaryError, match="two transcoders"):
        ReplacementModel(hooked, {"layers.0.mlp": made[0], "layers.0.mlp_out": made[0]})
    identity = ModelIdentity(source="tiny", fingerprint=hooked.fingerprint)
    at = {"hook_in": "layers.0.resid_post", "hook_out": "layers.0.resid_post", "d_in": 32, "d_out": 32}
    config = DictionaryConfig(kind="sae", n_latents=8, activation={"type": "relu"}, model=identity, **at)
    with pytest.raises(DictionaryError, match="does not stand for"):
        ReplacementModel(hooked, {"layers.0.mlp": SparseAutoencoder(config)})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["layers.1.mlp", "layers.1.mlp_out", "layers.1.mlp_in", "blocks.1.hook_mlp_out"])
def test_an_mlp_can_be_named_by_its_hook_points(name: str) -> None:
    hooked = cases.hooked_model("llama")
    rm = ReplacementModel(hooked, {name: cases.transcoder(hooked, 1)})
    assert [t is not None for t in rm.replacement.transcoders] == [False, True, False]


def test_a_model_that_overflows_is_an_error_and_not_a_graph() -> None:
    hooked = cases.hooked_model("llama")
    made = cases.transcoders(hooked)
    with torch.no_grad():
        hooked.model.lm_head.weight[3] = torch.inf
    with pytest.raises(ModelError, match="not finite"):
        compute(ReplacementModel(hooked, made), cases.prompt())


def test_a_rule_for_bos_must_be_one_of_three() -> None:
    with pytest.raises(SpecError, match="no such rule"):
        cases.replacement_model("llama", bos="sometimes")


@pytest.mark.parametrize("options", [{"max_features": 0}, {"batch": 0}])
def test_sizes_are_positive(options: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="at least 1"):
        AttributionComputer(cases.replacement_model("llama"), **options)  # type: ignore[arg-type]
