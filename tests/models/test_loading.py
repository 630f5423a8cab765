"""Loading: every family from a directory, GGUF, SplitLlama; what is unsafe or incomplete is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tiny_models import ALL, VOCAB, make, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.errors import ModelError, ProbeFailed, SourceError, UnsafeFormat
from interp.models import LoadedModel, SplitLlama, load_model
from interp.models.families import FAMILIES, Norm
from interp.models.loading import load_tokenizer
from interp.spec.study import ModelSpec
from interp.wrapper import HookedModel, HookedSplitLlama


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "interp-cache"))


def _saved(tmp_path: Path, name: str, **changes: Any) -> Path:
    path = tmp_path / name
    make(name, **changes).save_pretrained(path)
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return HookedModel(loaded).run_with_hooks(token_ids(), {})


def _spec(source: Path, **changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({"source": str(source), **changes})


@pytest.mark.parametrize("name", ALL)
def test_a_saved_model_comes_back_and_is_proved(tmp_path: Path, name: str) -> None:
    loaded = load_model(_saved(tmp_path, name))
    torch.testing.assert_close(_logits(loaded), _logits_of(make(name)))
    assert loaded.family.name in FAMILIES and not loaded.model.training
    assert loaded.tokenizer is None and loaded.source.endswith(name)


def _logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return HookedModel(model).run_with_hooks(token_ids(), {})


def test_a_model_in_shards(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    torch.testing.assert_close(_logits(load_model(tmp_path / "m")), _logits_of(make("llama")))


def test_the_wrapper_loads_from_a_source(tmp_path: Path) -> None:
    path = _saved(tmp_path, "split_llama_mlp")
    hooked = HookedSplitLlama(str(path))
    assert isinstance(hooked.model, SplitLlama) and hooked.family.name == "split-llama"
    assert hooked.fingerprint == load_model(path).fingerprint
    with pytest.raises(ModelError, match="HookedModel"):
        HookedSplitLlama(_saved(tmp_path, "llama"))


def test_the_fingerprint_is_the_content(tmp_path: Path) -> None:
    first, again = _saved(tmp_path / "a", "llama"), _saved(tmp_path / "b", "llama")
    other = _saved(tmp_path / "c", "llama", seed=1)
    assert load_model(first).fingerprint == load_model(again).fingerprint != load_model(other).fingerprint


def test_dtype_and_attention(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    assert load_model(path).model.dtype == torch.float32
    assert load_model(_spec(path, dtype="bfloat16")).model.dtype == torch.bfloat16
    assert load_model(_spec(path, dtype="bfloat16"), dtype=torch.float16).model.dtype == torch.float16
    assert load_model(path).model.config._attn_implementation == "eager"
    assert load_model(path, attention="sdpa").model.config._attn_implementation == "sdpa"
    split = load_model(_saved(tmp_path, "split_llama"), attention="sdpa", dtype="bfloat16").model
    assert split.dtype == torch.bfloat16
    assert {layer.self_attn.config._attn_implementation for layer in split.layers_last} == {"sdpa"}
    with pytest.raises(ModelError, match="dtype"):
        load_model(path, dtype="int8")


def test_the_tokenizer_beside_the_weights(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    _tokenizer().save_pretrained(path)
    hooked = HookedModel(path)
    assert hooked.tokenize("w7 w9", bos=True).tolist() == [[0, 7, 9]]
    assert hooked.tokenize("w7 w9", bos=False).tolist() == [[7, 9]]
    assert hooked.bos_token_id == 0


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    _tokenizer().save_pretrained(tmp_path / "tokenizer")
    loaded = load_model(_spec(path, tokenizer=str(tmp_path / "tokenizer")))
    assert HookedModel(loaded).tokenize("w3", bos=False).tolist() == [[3]]
    with pytest.raises(SourceError):
        load_model(_spec(path, tokenizer=str(tmp_path / "absent")))
    with pytest.raises(SourceError, match="tokenizer"):
        load_tokenizer(_spec(path))


def test_a_tokenizer_without_bos_says_so(tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.bos_token = None
    hooked = HookedModel(make("llama"), tokenizer=tokenizer)
    assert hooked.bos_token_id is None
    with pytest.raises(ModelError, match="BOS"):
        hooked.tokenize("w3", bos=True)


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    (path / "model.safetensors").unlink()
    torch.save(make("llama").state_dict(), path / "pytorch_model.bin")
    with pytest.raises(UnsafeFormat, match="execute code"):
        load_model(path)


def test_a_pickle_beside_safetensors_is_not_read(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    (path / "pytorch_model.bin").write_bytes(b"not a pickle")
    torch.testing.assert_close(_logits(load_model(path)), _logits_of(make("llama")))


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (path / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    torch.testing.assert_close(_logits(load_model(path)), _logits_of(make("llama")))
    assert not mark.exists()


def test_missing_weights_are_never_made_up(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 57}))
    with pytest.raises(ModelError, match=r"up_proj\.weight is \(56, 32\), not \(57, 32\)"):
        load_model(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(path)


def test_tensors_that_are_left_over_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _saved(tmp_path, "llama")
    weights = load_file(path / "model.safetensors")
    save_file({**weights, "extra.weight": torch.zeros(1)}, path / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_model(path)
    assert "extra.weight" in caplog.text


def test_an_unknown_family_is_named_before_weights_are_read(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(ModelError, match="llama, mistral, qwen2"):
        load_model(path)
    with pytest.raises(ModelError, match="no model family"):
        load_model(_spec(path, family="lama"))


def test_what_is_loaded_is_proved_when_it_is_wrapped(tmp_path: Path) -> None:
    path = _saved(tmp_path, "llama")
    wrong = replace(FAMILIES["llama"], norm=Norm("rms_offset", "variance_epsilon"))
    with pytest.raises(ProbeFailed, match=r"norm\.kind"):
        HookedModel(load_model(path, family=wrong))
    with pytest.raises(ProbeFailed, match=r"norm\.kind"):
        HookedModel(path, family=wrong)
    assert HookedModel(path, family=wrong, prove=False).family is wrong
    # Mistral's modules are named and composed as llama's are: the study may say so.
    assert HookedModel(_spec(path, family="mistral")).family.name == "mistral"


def test_what_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        load_model(tmp_path / "absent")
    with pytest.raises(SourceError):
        load_model(tmp_path / "absent.gguf")


def test_the_model_that_ships() -> None:
    hooked = HookedSplitLlama("builtin://tiny-split-llama")
    topology = hooked.topology
    assert topology.d_model_first < topology.d_model_last and topology.adapter
    assert hooked.dtype == torch.float32 and hooked.tokenizer is not None
    ids = hooked.tokenize("def __init__(self, name):", bos=hooked.bos_token_id is not None)
    cache = hooked.run_with_cache(ids, topology.all_resid_hooks)
    assert cache[topology.all_resid_hooks[-1]].shape == (1, ids.shape[1], topology.d_model_last)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--tiny"
    make("llama").save_pretrained(repository / "snapshots" / COMMIT)
    _tokenizer().save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    loaded = load_model("hf://org/tiny")
    assert loaded.fingerprint == COMMIT and loaded.tokenizer is not None
    torch.testing.assert_close(_logits(loaded), _logits_of(make("llama")))
    with pytest.raises(SourceError):
        load_model("hf://org/absent")


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order that GGUF keeps them in for llamas: rotary pairs side by side."""
    out, d_model = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, d_model).swapaxes(1, 2).reshape(out, d_model)


def _write_gguf(path: Path, model: Any, tokenizer: bool) -> None:
    config, writer = model.config, GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(["w", "1", "w1", *(f"t{i}" for i in range(3, VOCAB))])
        writer.add_token_types([1] * VOCAB)
        writer.add_token_merges(["w 1"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        weight, stem = tensor.numpy(), name.removesuffix(".weight")
        if stem in ends:
            writer.add_tensor(f"{ends[stem]}.weight", weight)
            continue
        _, _, layer, *_, last = stem.split(".")
        if last in ("q_proj", "k_proj"):
            weight = _interleaved(
                weight, config.num_attention_heads if last == "q_proj" else config.num_key_value_heads
            )
        writer.add_tensor(f"blk.{layer}.{names[last]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tokenizer", [False, True])
def test_a_gguf_file_is_read_proved_and_can_be_saved(tmp_path: Path, tokenizer: bool) -> None:
    model = make("llama", attention_bias=False, mlp_bias=False)
    _write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    loaded = load_model(tmp_path / "tiny.gguf")
    torch.testing.assert_close(_logits(loaded), _logits_of(model), rtol=1e-4, atol=1e-5)
    assert (loaded.tokenizer is not None) == tokenizer
    if tokenizer:
        begin, *ids = HookedModel(loaded).tokenize("w1", bos=True)[0].tolist()
        assert begin == 0 and loaded.tokenizer.decode(ids) == "w1"
    loaded.model.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    torch.testing.assert_close(_logits(again), _logits(loaded))


def test_a_gguf_file_that_is_cut_short(tmp_path: Path) -> None:
    model = make("llama", attention_bias=False, mlp_bias=False)
    _write_gguf(tmp_path / "tiny.gguf", model, tokenizer=False)
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError):
        load_model(tmp_path / "tiny.gguf")
