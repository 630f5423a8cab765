"""Reading activations: against what transformers itself reports, and against modules that must not run."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from tiny_models import ALL, CONTEXT, VOCAB, make, token_ids

from interp.errors import HookError, ModelError, PromptError
from interp.wrapper import HookedModel, HookedSplitLlama

SINGLE_GROUP = [name for name in ALL if not name.startswith("split")]


@pytest.mark.parametrize("name", SINGLE_GROUP)
def test_captures_are_what_transformers_reports(name: str) -> None:
    model, ids = make(name), token_ids()
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True, output_attentions=True, use_cache=False)
    hooked = HookedModel(make(name))
    cache = hooked.run_with_cache(ids, lambda _: True, logits=True)
    resid = [cache["embed"], *(cache[hook] for hook in hooked.topology.all_resid_hooks)]
    # The last of transformers' hidden states is after the final norm.
    for found, hidden in zip([*resid[:-1], cache["final_norm"]], expected.hidden_states, strict=True):
        torch.testing.assert_close(found, hidden)
    for hook, pattern in zip(hooked.topology.all_attn_pattern_hooks, expected.attentions, strict=True):
        torch.testing.assert_close(cache[hook], pattern)
        torch.testing.assert_close(cache[hook].sum(-1), torch.ones(cache[hook].shape[:-1]))
    torch.testing.assert_close(hooked.softcapped(cache.logits), expected.logits)


@pytest.mark.parametrize("name", ALL)
def test_blocks_add_what_the_hooks_say(name: str) -> None:
    hooked = HookedModel(make(name))
    cache = hooked.run_with_cache(token_ids(), "layers*.*.*")
    for layer in range(hooked.topology.n_layers):
        block = hooked.topology.block_name(layer)
        before, after = cache[f"{block}.resid_pre"], cache[f"{block}.resid_post"]
        middle = before + cache[f"{block}.attn_out"]
        if not hooked.topology.parallel:
            torch.testing.assert_close(middle, cache[f"{block}.resid_mid"])
        torch.testing.assert_close(middle + cache[f"{block}.mlp_out"], after)


def test_the_mlp_reads_mlp_in() -> None:
    model = make("gemma2")
    cache = HookedModel(model).run_with_cache(token_ids(), "layers.1.mlp_*")
    block = model.model.layers[1]
    with torch.no_grad():
        out = block.post_feedforward_layernorm(block.mlp(cache["layers.1.mlp_in"]))
    torch.testing.assert_close(out, cache["layers.1.mlp_out"])


def _poison(module: torch.nn.Module) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a module ran that nobody needed")

    module.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "split_llama"])
def test_nothing_runs_after_the_last_hook_that_is_needed(name: str) -> None:
    model = make(name)
    hooked = HookedModel(model)
    whole = hooked.run_with_cache(token_ids(), lambda _: True)
    first, second = hooked.topology.block_name(0), hooked.topology.block_name(1)
    group = hooked.family.groups[0].path
    _poison(model.get_submodule(f"{group}.1.{hooked.family.block.mlp}"))
    _poison(model.get_submodule(hooked.family.final_norm))
    _poison(model.get_submodule(hooked.family.head))
    for hook in (f"{first}.resid_post", f"{second}.attn_out", f"{second}.mlp_in"):
        torch.testing.assert_close(hooked.run_with_cache(token_ids(), hook)[hook], whole[hook])
    with pytest.raises(AssertionError, match="nobody needed"):
        hooked.run_with_cache(token_ids(), f"{second}.mlp_out")


def test_the_head_runs_only_for_logits() -> None:
    model = make("llama")
    hooked = HookedModel(model)
    _poison(model.lm_head)
    assert hooked.run_with_cache(token_ids(), "final_norm")["final_norm"].shape == (2, 9, 32)
    with pytest.raises(AssertionError, match="nobody needed"):
        hooked.run_with_cache(token_ids(), "final_norm", logits=True)


def test_a_stopped_run_leaves_no_trace() -> None:
    model, ids = make("llama"), token_ids()
    with torch.no_grad():
        before = make("llama")(ids, output_hidden_states=True, use_cache=False)
    hooked = HookedModel(model)
    for hook in ("embed", "layers.1.attn_out", "layers.0.resid_post"):
        hooked.run_with_cache(ids, hook)
    with torch.no_grad():
        after = model(ids, output_hidden_states=True, use_cache=False)
    assert torch.equal(before.logits, after.logits)
    assert len(before.hidden_states) == len(after.hidden_states)


def test_selection_by_name_glob_alias_and_test() -> None:
    hooked, ids = HookedModel(make("llama")), token_ids()
    assert tuple(hooked.run_with_cache(ids, ["layers.2.mlp_in", "embed"])) == ("embed", "layers.2.mlp_in")
    assert tuple(hooked.run_with_cache(ids, "layers.*.resid_post")) == hooked.topology.all_resid_hooks
    assert tuple(hooked.run_with_cache(ids, lambda name: name == "embed")) == ("embed",)
    cache = hooked.run_with_cache(ids, "blocks.1.hook_mlp_out")
    assert torch.equal(cache["blocks.1.hook_mlp_out"], cache["layers.1.mlp_out"])
    assert len(hooked.run_with_cache(ids, [])) == 0


def test_unknown_hooks_are_refused() -> None:
    hooked = HookedModel(make("llama"))
    for wrong in ("layers.7.mlp_in", "layers.0.mlp_inn", "layers_first.*.mlp_in", "adapter_out"):
        with pytest.raises(HookError):
            hooked.run_with_cache(token_ids(), wrong)
    with pytest.raises(HookError, match="not in the cache"):
        hooked.run_with_cache(token_ids(), "embed")["final_norm"]
    with pytest.raises(HookError, match="logits=True"):
        _ = hooked.run_with_cache(token_ids(), "embed").logits
    with pytest.raises(HookError, match="resid_pre"):
        HookedModel(make("gpt_neox")).topology.point("layers.0.resid_mid")


def test_patterns_need_eager_attention() -> None:
    model = make("llama")
    model.set_attn_implementation("sdpa")
    hooked = HookedModel(model)
    cache = hooked.run_with_cache(token_ids(), "layers.0.*")
    assert "layers.0.attn_pattern" not in cache and "layers.0.attn_out" in cache
    with pytest.raises(HookError, match="eager"):
        hooked.run_with_cache(token_ids(), "layers.0.attn_pattern")
    assert hooked.run_with_cache(token_ids(), "embed")["embed"].shape == (2, 9, 32)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (torch.zeros(4, dtype=torch.long), "batch dimension"),
        (torch.zeros(1, 0, dtype=torch.long), "empty"),
        (torch.zeros(1, 4), "no token ids"),
        (torch.full((1, 4), VOCAB), "does not know"),
        (torch.full((1, 4), -1), "does not know"),
        (torch.zeros(1, CONTEXT + 1, dtype=torch.long), "learned positions"),
    ],
)
def test_prompts_that_cannot_be_read(ids: torch.Tensor, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        HookedModel(make("gpt2")).run_with_cache(ids, "embed")


def test_what_is_captured_can_train_but_carries_no_graph() -> None:
    value = HookedModel(make("llama")).run_with_cache(token_ids(), "layers.0.mlp_in")["layers.0.mlp_in"]
    assert not value.requires_grad and not value.is_inference()
    weight = torch.ones(32, requires_grad=True)
    (value * weight).sum().backward()
    assert weight.grad is not None


def test_dropout_is_off() -> None:
    model = make("gpt2", embd_pdrop=0.5, resid_pdrop=0.5).train()
    hooked = HookedModel(model)
    first, second = (hooked.run_with_cache(token_ids(), "final_norm")["final_norm"] for _ in range(2))
    assert torch.equal(first, second)


def test_threads_take_turns() -> None:
    hooked = HookedModel(make("llama"))
    prompts = [token_ids(seed=seed) for seed in range(4)]
    expected = [hooked.run_with_cache(ids, "layers.2.mlp_out")["layers.2.mlp_out"] for ids in prompts]
    wrong: list[str] = []

    def work(which: int) -> None:
        for _ in range(5):
            try:
                found = hooked.run_with_cache(prompts[which], "layers.2.mlp_out")["layers.2.mlp_out"]
            except Exception as error:  # noqa: BLE001 - a thread's failure must reach the test
                wrong.append(repr(error))
                continue
            if not torch.equal(found, expected[which]):
                wrong.append(f"thread {which} got another's values")

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_wrappers_of_one_model_and_a_copy() -> None:
    model, ids = make("llama"), token_ids()
    one, two = HookedModel(model), HookedModel(model)
    expected = one.run_with_cache(ids, "final_norm")["final_norm"]
    assert torch.equal(two.run_with_cache(ids, "final_norm")["final_norm"], expected)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.model.norm.weight.mul_(2)
    assert torch.equal(one.run_with_cache(ids, "final_norm")["final_norm"], expected)
    assert torch.equal(HookedModel(copied).run_with_cache(ids, "final_norm")["final_norm"], 2 * expected)


def test_nothing_of_a_run_outlives_its_cache() -> None:
    hooked = HookedModel(make("llama"))
    gc.disable()
    try:
        cache = hooked.run_with_cache(token_ids(), "layers.0.mlp_in", logits=True)
        alive = [weakref.ref(cache["layers.0.mlp_in"]), weakref.ref(cache.logits)]
        del cache
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_fingerprint_of_a_module_in_memory_is_its_content() -> None:
    assert HookedModel(make("llama")).fingerprint == HookedModel(make("llama")).fingerprint
    assert HookedModel(make("llama")).fingerprint != HookedModel(make("llama", seed=1)).fingerprint
    assert HookedModel(make("llama"), fingerprint="given").fingerprint == "given"


def test_the_split_wrapper_wants_a_split_model() -> None:
    hooked = HookedSplitLlama(make("split_llama"))
    assert hooked.topology.d_model_first == 32 and hooked.topology.d_model_last == 48
    with pytest.raises(ModelError, match="HookedModel"):
        HookedSplitLlama(make("llama"))
    with pytest.raises(ModelError, match="table"):
        HookedModel(torch.nn.Linear(2, 2))


def test_a_model_without_tokenizer_says_so() -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        HookedModel(make("llama")).tokenize("x", bos=False)
