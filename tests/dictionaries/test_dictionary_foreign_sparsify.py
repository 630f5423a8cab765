"""sparsify: folders that are named as modules, what they mean on a model, and ours through its files and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import D, F, claim, hooked, inputs, same
from peer_cases import MLPS, K, ours, output, sparsify_output, sparsify_tensors, write_sparsify
from safetensors.numpy import load_file, save_file

from interp.dictionaries.foreign import read_dictionaries, recognise, write_dictionaries
from interp.dictionaries.foreign.places import module_hooks
from interp.errors import DictionaryError, ModelMismatch
from interp.sources.dictionaries import dictionary_revision

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "sae": ("layers.1", {}, "layers.1.resid_post"),
    "sae of an MLP": ("layers.1.mlp", {}, "layers.1.mlp_out"),
    "sae of attention": ("layers.1.self_attn", {}, "layers.1.attn_out"),
    "sae of a norm": ("model.layers.1.post_attention_layernorm", {}, "layers.1.mlp_in"),
    "multi_topk": ("layers.1", {"multi_topk": True}, "layers.1.resid_post"),
    "older": ("layers.1", {"activation": None, "num_latents": 0}, "layers.1.resid_post"),
    "transcoder": ("layers.1.mlp", {"transcode": True}, "layers.1.mlp"),
    "skip": ("layers.1.mlp", {"transcode": True, "skip_connection": True}, "layers.1.mlp"),
    "of a block": ("layers.1", {"transcode": True}, "layers.1.resid_pre-layers.1.resid_post"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_computes_what_it_does_there(case: str, tmp_path: Path) -> None:
    module, said, at = CASES[case]
    tensors, x = sparsify_tensors(skip="skip_connection" in said), inputs()
    write_sparsify(tmp_path / "run" / module, tensors, **said)
    (found,) = read_dictionaries(tmp_path / "run", claim()).values()
    assert found.config.at == at and found.config.activation.type == "topk" and found.config.activation.k == K  # type: ignore[union-attr]
    same(output(found), sparsify_output(tensors, x, bool(said.get("transcode"))), 1e-5)
    (alone,) = read_dictionaries(tmp_path / "run" / module, claim()).values()  # its folder, named itself
    assert alone.config == found.config


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "gpt_neox_sequential", "split_llama"])
def test_modules_are_the_hook_points_that_we_take_them_for(name: str) -> None:
    """What a module of the model gives, by a hook of torch, is what the hook point has; what it reads, as well."""
    model, found = hooked(name), {}
    layout, family = model.model, model.family
    prefix = family.groups[-1].path
    block = family.block
    below = ["", block.attn_norm, block.mlp_norm, block.attn_post_norm or block.attn, block.mlp_post_norm or block.mlp]
    names = [f"{prefix}.1{f'.{each}' if each else ''}" for each in below] + [family.final_norm]
    if family.block.mlp_post_norm:
        names.append(f"{prefix}.1.{block.mlp}")

    def keep(module_name: str) -> Any:
        def hook(_: Any, given: tuple[Any, ...], result: Any) -> None:
            first = result[0] if isinstance(result, tuple) else result
            found[module_name] = (given[0] if given else None, first)

        return hook

    handles = [layout.get_submodule(each).register_forward_hook(keep(each)) for each in names]
    ids = torch.randint(2, 90, (1, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layout(ids)
    for handle in handles:
        handle.remove()
    for each in names:
        if each.endswith(f".{block.mlp}") and block.mlp_post_norm:
            with pytest.raises(DictionaryError, match="no hook point of this model"):
                module_hooks(each, family, "here")
            continue
        read, given = module_hooks(each, family, "here")
        cache = model.run_with_cache(ids, [given, *([read] if read else [])])
        torch.testing.assert_close(found[each][1], cache[given])
        if read is not None:
            torch.testing.assert_close(found[each][0], cache[read])
        base = each.partition(".")[2] if each.split(".")[0] in ("model", "transformer", "gpt_neox") else each
        assert module_hooks(base, family, "here") == (read, given)  # from base_model on, as sparsify names them


@pytest.mark.parametrize(
    ("module", "said", "told"),
    [
        ("layers.1", {"activation": "groupmax"}, "the largest of each of k groups"),
        ("layers.1", {"activation": "jumprelu"}, "activation is not as it should be"),
        ("layers.1", {"signed": True}, "no latents with negative activations"),
        ("layers.1", {"skip_connection": True}, "skip paths in transcoders only"),
        ("layers.1", {"k": None}, "without k"),
        ("layers.1", {"k": F + 1}, f"at most {F}"),
        ("layers.1", {"d_in": 8}, f"{D}, as the weights have"),
        ("layers.1", {"num_latents": 8}, f"{F}, as the weights have"),
        ("layers.9", {}, "the model has no such module"),
        ("h.1", {}, "whose output is no hook point of this model"),
        ("layers.1.mlp.up_proj", {}, r"layers\.<i>\.mlp"),
        ("layers.1.self_attn", {"transcode": True}, "what this module reads is no hook point"),
    ],
)
def test_what_is_refused(module: str, said: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=told) as caught:
        read_dictionaries(write_sparsify(tmp_path / module, **said), claim())
    assert "cfg.json" in str(caught.value)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    folder = write_sparsify(tmp_path / "layers.1")
    weights = folder / "sae.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(whole[:100])
    with pytest.raises(DictionaryError, match=r"not readable safetensors: .*sae\.safetensors"):
        read_dictionaries(folder, claim())
    save_file({**tensors, "W_dec": np.zeros((D, F), np.float32)}, weights)
    with pytest.raises(DictionaryError, match=r"tensor W_dec has another shape"):
        read_dictionaries(folder, claim())
    save_file({key: value for key, value in tensors.items() if key != "b_dec"}, weights)
    with pytest.raises(DictionaryError, match="missing b_dec"):
        read_dictionaries(folder, claim())


def test_seeds_and_other_runs(tmp_path: Path) -> None:
    write_sparsify(tmp_path / "run" / "layers.1" / "seed0")
    assert list(read_dictionaries(tmp_path / "run", claim())) == ["layers.1.resid_post"]
    assert list(read_dictionaries(tmp_path / "run" / "layers.1" / "seed0", claim())) == ["layers.1.resid_post"]
    write_sparsify(tmp_path / "run" / "layers.1" / "seed1")
    with pytest.raises(DictionaryError, match="one seed of it"):
        read_dictionaries(tmp_path / "run", claim())


def test_the_name_of_a_folder_is_part_of_its_content(tmp_path: Path) -> None:
    """It alone says where the sparse coder belongs."""
    revisions = [dictionary_revision(str(write_sparsify(tmp_path / name))) for name in ("layers.1", "layers.2")]
    assert revisions[0] != revisions[1]
    assert dictionary_revision(str(write_sparsify(tmp_path / "elsewhere" / "layers.1"))) == revisions[0]


# --- written


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip-transcoder"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ours_there_and_back(kind: str, name: str, tmp_path: Path) -> None:
    dictionary = ours(kind, "topk", name=name)
    write_dictionaries({dictionary.config.at: dictionary}, tmp_path, "sparsify", mlps=MLPS)
    (folder,) = tmp_path.iterdir()
    block = "layers.1" if name == "llama" else "h.1"
    assert folder.name == (block if kind == "sae" else f"{block}.mlp")
    assert recognise(tmp_path) == "sparsify"
    found = read_dictionaries(tmp_path, claim(name))
    assert list(found) == [dictionary.config.at]
    assert torch.equal(output(found[dictionary.config.at]), output(dictionary))
    same(output(dictionary), sparsify_output(load_file(folder / "sae.safetensors"), inputs(), kind != "sae"), 1e-5)
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["transcode"], config["skip_connection"]) == (kind != "sae", kind == "skip-transcoder")
    with pytest.raises(ModelMismatch):
        read_dictionaries(tmp_path, claim("qwen2"))


@pytest.mark.parametrize(
    ("kind", "activation", "name", "hooks", "told"),
    [
        ("sae", "relu", "llama", None, "nothing that computes the same"),
        ("sae", "batchtopk", "llama", None, "nothing that computes the same"),
        ("sae", "topk", "llama", ("layers.1.resid_mid",) * 2, "names a place by a module"),
        ("transcoder", "topk", "gemma2", None, "names a place by a module"),
        ("transcoder", "topk", "llama", ("layers.0.mlp_in", "layers.1.mlp_out"), "names a place by a module"),
    ],
)
def test_what_cannot_be_written(kind: str, activation: str, name: str, hooks: Any, told: str, tmp_path: Path) -> None:
    dictionary = ours(kind, activation, name=name, hooks=hooks)
    with pytest.raises(DictionaryError, match=told):
        write_dictionaries({dictionary.config.at: dictionary}, tmp_path / "out", "sparsify", mlps=MLPS)
    assert not (tmp_path / "out").exists()
