"""SplitLlama computes what its two Llamas compute, however it is made, loaded, cached or attended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from interp.errors import ModelError, UnsafeFormat
from interp.models.split_llama import SplitLlama, SplitLlamaConfig

VOCAB = 61
SHARED = {"vocab_size": VOCAB, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
FIRST = SHARED | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
}
LAST = SHARED | {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))


def config(**changes: Any) -> SplitLlamaConfig:
    return SplitLlamaConfig.from_llamas(**({"first": FIRST, "last": LAST, "n_first": 2, "n_last": 3} | changes))


def model(**changes: Any) -> SplitLlama:
    """Random weights large enough that every part matters."""
    torch.manual_seed(0)
    made = SplitLlama(config(initializer_range=0.3, **changes)).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made


def save_llama(directory: Path, values: dict[str, Any], **saving: Any) -> LlamaForCausalLM:
    torch.manual_seed(values["hidden_size"])
    llama = LlamaForCausalLM(LlamaConfig(**values, initializer_range=0.3)).eval()
    llama.save_pretrained(directory, **saving)
    return llama


# --- the configuration -----------------------------------------------------------------------------------------------


def test_config_takes_values_objects_and_paths(tmp_path: Path) -> None:
    LlamaConfig(**FIRST).save_pretrained(tmp_path)
    made = [
        config(),
        config(first=LlamaConfig(**FIRST)),
        config(first=tmp_path),
        config(first=str(tmp_path / "config.json")),
    ]
    for one in made:
        assert one.first.hidden_size == 16
        assert one.first.rope_parameters["rope_theta"] == 10000.0
        assert one.vocab_size == VOCAB
        assert (one.bos_token_id, one.eos_token_id) == (0, 0)


def test_a_path_is_inlined_at_construction(tmp_path: Path) -> None:
    LlamaConfig(**FIRST).save_pretrained(tmp_path)
    made = config(first=tmp_path)
    (tmp_path / "config.json").unlink()
    assert str(tmp_path) not in made.to_json_string()
    assert SplitLlamaConfig.from_dict(json.loads(made.to_json_string())).first.to_dict() == made.first.to_dict()


def test_layer_indices_continue_those_of_the_large_model() -> None:
    made = model()
    assert list(made.config.last_layer_indices) == [2, 3, 4]
    cache_indices = [layer.self_attn.layer_idx for layer in (*made.layers_first, *made.layers_last)]
    assert cache_indices == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_first": 4}, "n_first"),
        ({"n_first": 0}, "n_first"),
        ({"n_last": 6}, "1 to 5"),
        ({"first": FIRST | {"vocab_size": 7}}, "vocabulary sizes"),
        ({"first": FIRST | {"model_type": "gpt2"}}, "does not name a Llama"),
        ({"last": "no/such/place"}, "no model configuration"),
        ({"last": None}, "does not name a Llama"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_an_impossible_config_says_what_and_how(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        config(**changes)
    assert "expected:" in str(caught.value)
    assert "remedy:" in str(caught.value)


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter_mlp", [False, True])
def test_shapes(ids: torch.Tensor, adapter_mlp: bool) -> None:
    made = model(adapter_mlp=adapter_mlp)
    seen: dict[str, torch.Size] = {}
    for name in ("embed_tokens", "layers_first.1", "adapter", "layers_last.2", "norm"):
        made.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.shape}))
    out = made(ids, labels=ids)
    assert out.logits.shape == (2, 11, VOCAB)
    assert out.loss.ndim == 0
    widths = {name: shape[-1] for name, shape in seen.items()}
    assert widths == {"embed_tokens": 16, "layers_first.1": 16, "adapter": 48, "layers_last.2": 48, "norm": 48}
    assert not any(name.endswith("bias") for name, _ in made.named_parameters())
    assert made(ids, logits_to_keep=1).logits.shape == (2, 1, VOCAB)


def test_adapter_with_a_hidden_layer() -> None:
    made = model(adapter_mlp=True, adapter_hidden_size=20)
    x = torch.randn(5, 16)
    assert [tuple(p.shape) for p in made.adapter.parameters()] == [(20, 16), (48, 20)]
    torch.testing.assert_close(made.adapter(x), torch.relu(x @ made.adapter[0].weight.T) @ made.adapter[2].weight.T)


@pytest.mark.parametrize("adapter_mlp", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_joined_checkpoints_equal_the_composition(
    tmp_path: Path, ids: torch.Tensor, adapter_mlp: bool, tied: bool
) -> None:
    """The small model's layers, then the adapter, then the large model's, each called as its own Llama calls it."""
    small = save_llama(tmp_path / "first", FIRST)
    large = save_llama(tmp_path / "last", LAST | {"tie_word_embeddings": tied}, max_shard_size="20KB")
    assert len(list((tmp_path / "last").glob("*.safetensors"))) > 1
    made = SplitLlama.from_llama_checkpoints(
        tmp_path / "first", tmp_path / "last", n_first=2, n_last=3, adapter_mlp=adapter_mlp, seed=3
    )

    mask = torch.full((11, 11), float("-inf")).triu(1)[None, None]
    places = torch.arange(11)[None]
    hidden = small.model.embed_tokens(ids)
    angles = small.model.rotary_emb(hidden, places)
    for layer in small.model.layers[:2]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
    hidden = made.adapter(hidden)
    angles = large.model.rotary_emb(hidden, places)
    for layer in large.model.layers[2:]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
    torch.testing.assert_close(made(ids).logits, large.lm_head(large.model.norm(hidden)), atol=1e-5, rtol=1e-4)


def test_the_fresh_adapter_depends_on_the_seed_alone(tmp_path: Path) -> None:
    save_llama(tmp_path / "first", FIRST)
    save_llama(tmp_path / "last", LAST)
    weights = [
        SplitLlama.from_llama_checkpoints(tmp_path / "first", tmp_path / "last", 1, 1, seed=seed).adapter.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_eager_equals_sdpa_and_shows_its_weights(ids: torch.Tensor) -> None:
    made = model()
    made.set_attn_implementation("sdpa")
    fused = made(ids).logits
    made.set_attn_implementation("eager")
    seen: list[torch.Tensor] = []
    made.layers_last[0].self_attn.register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    torch.testing.assert_close(made(ids).logits, fused, atol=1e-5, rtol=1e-4)
    assert seen[0].shape == (2, 6, 11, 11)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 6, 11))
    assert seen[0].triu(1).abs().max() == 0


def test_the_outputs_can_be_asked_for(ids: torch.Tensor) -> None:
    made = model()
    made.set_attn_implementation("eager")
    out = made(ids, output_hidden_states=True, output_attentions=True)
    assert [h.shape[-1] for h in out.hidden_states] == [16, 16, 16, 48, 48, 48]
    assert [a.shape[1] for a in out.attentions] == [4, 4, 6, 6, 6]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_generation_is_the_same_with_and_without_a_cache(ids: torch.Tensor, attention: str) -> None:
    made = model()
    made.set_attn_implementation(attention)
    rules = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    cached = made.generate(ids, attention_mask=mask, use_cache=True, **rules)
    assert torch.equal(cached, made.generate(ids, attention_mask=mask, use_cache=False, **rules))
    assert cached.shape == (2, 23)


def test_padding_on_the_left_changes_nothing(ids: torch.Tensor) -> None:
    made = model()
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(15) >= 4).long().expand(2, -1)
    out = made(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(out[:, 4:], made(ids).logits, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(ids: torch.Tensor) -> None:
    made = model().train()
    made(ids, labels=ids).loss.backward()
    plain = made.adapter.weight.grad.clone()
    made.zero_grad()
    made.gradient_checkpointing_enable()
    made(ids, labels=ids).loss.backward()
    torch.testing.assert_close(made.adapter.weight.grad, plain)


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter_mlp", [False, True])
def test_a_saved_model_comes_back_equal(tmp_path: Path, ids: torch.Tensor, adapter_mlp: bool) -> None:
    made = model(adapter_mlp=adapter_mlp)
    expected = made(ids).logits
    made.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "generation_config.json"}
    for again in (
        SplitLlama.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
        SplitLlama(SplitLlamaConfig(model_path=str(tmp_path))),
    ):
        assert isinstance(again, SplitLlama)
        assert not again.training
        assert torch.equal(again(ids).logits, expected)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == again.config.to_dict()


def test_model_path_keeps_the_saved_type_unless_told_otherwise(tmp_path: Path, ids: torch.Tensor) -> None:
    made = model().to(torch.bfloat16)
    made.save_pretrained(tmp_path)
    kept = SplitLlama(SplitLlamaConfig(model_path=str(tmp_path)))
    raised = SplitLlama(SplitLlamaConfig(model_path=str(tmp_path), dtype="float32"))
    assert (kept.dtype, raised.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(kept.float()(ids).logits, raised(ids).logits)
    assert "model_path" not in kept.config.to_dict()


def test_attention_can_be_chosen_on_loading(tmp_path: Path, ids: torch.Tensor) -> None:
    made = model()
    made.save_pretrained(tmp_path)
    eager = SplitLlama.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config.first._attn_implementation == eager.config.last._attn_implementation == "eager"
    torch.testing.assert_close(eager(ids).logits, made(ids).logits, atol=1e-5, rtol=1e-4)


def load_by_config(directory: Path) -> SplitLlama:
    return SplitLlama(SplitLlamaConfig(model_path=str(directory)))


@pytest.mark.parametrize("load", [SplitLlama.from_pretrained, load_by_config])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, load: Any, damage: str) -> None:
    model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del weights["adapter.weight"]
    else:
        weights["adapter.weight" if damage == "misshapen" else "adapter.extra"] = torch.zeros(3, 3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"adapter\.") as caught:
        load(tmp_path)
    assert "remedy:" in str(caught.value)


@pytest.mark.parametrize("load", [SplitLlama.from_pretrained, load_by_config])
def test_no_weights_and_pickled_weights_are_refused(tmp_path: Path, load: Any) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UnsafeFormat, match=r"pytorch_model\.bin"):
        load(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    LlamaConfig(**FIRST).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="another kind of model"):
        SplitLlamaConfig(model_path=str(tmp_path))


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    save_llama(tmp_path / "first", FIRST)
    save_llama(tmp_path / "last", LAST, max_shard_size="20KB")
    gone = sorted((tmp_path / "last").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        SplitLlama.from_llama_checkpoints(tmp_path / "first", tmp_path / "last", 1, 1)


def test_vocabularies_must_be_the_same_tokens(tmp_path: Path) -> None:
    for name, values in (("first", FIRST), ("last", LAST)):
        save_llama(tmp_path / name, values)
        vocabulary = {"a": 0, "b": 1} if name == "first" else {"b": 0, "a": 1}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(ModelError, match="vocabularies of the two checkpoints differ"):
        SplitLlama.from_llama_checkpoints(tmp_path / "first", tmp_path / "last", 1, 1)
