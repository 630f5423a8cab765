"""Weights of a SplitLlama: which safetensors files hold them, and which tensors of two Llamas it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from interp.errors import ModelError, UnsafeFormat
from interp.models.split_config import SplitLlamaConfig, read_json


def weight_files(directory: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint directory: the one file, or the shards that its index names."""
    directory = Path(directory)
    index = directory / "model.safetensors.index.json"
    names = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else {"model.safetensors"}
    missing = sorted(name for name in names if not (directory / name).is_file())
    if not missing:
        return sorted(directory / name for name in names)
    present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["no such directory"]
    pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth"))]
    raise (UnsafeFormat if pickled else ModelError)(
        f"{directory} lacks safetensors weights",
        value=f"missing {', '.join(missing[:4])}; present {', '.join(pickled or present[:8]) or 'nothing'}",
        expected="model.safetensors, or every shard that model.safetensors.index.json names",
        remedy="convert a checkpoint of another format to safetensors where its origin is trusted"
        if pickled
        else "give the directory that `save_pretrained` wrote, complete",
    )


def kept_names(config: SplitLlamaConfig) -> tuple[dict[str, str], dict[str, str]]:
    """What is kept of the small and of the large checkpoint: name prefixes there, by the prefix that they get here."""
    head = "model.embed_tokens." if config.last.tie_word_embeddings else "lm_head."
    first = {"embed_tokens.": "model.embed_tokens."}
    first |= {f"layers_first.{i}.": f"model.layers.{i}." for i in range(config.n_first)}
    last = {"norm.": "model.norm.", "lm_head.": head}
    last |= {f"layers_last.{j}.": f"model.layers.{index}." for j, index in enumerate(config.last_layer_indices)}
    return first, last


def read_tensors(directory: str | Path, prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Read the tensors below each source prefix and name them by its new one."""
    state: dict[str, Tensor] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                for new, old in prefixes.items():
                    if name.startswith(old):
                        state[new + name.removeprefix(old)] = file.get_tensor(name)
    return state


def assign(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give the model exactly these tensors; anything missing, unexpected or of another shape is an error."""
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    problems = [f"missing {name}" for name in wanted.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    refuse(problems, source)
    model.load_state_dict(state, assign=True)


def refuse(problems: list[str], source: str) -> None:
    if problems:
        raise ModelError(
            "the weights do not fit the configuration",
            value=f"{len(problems)} tensors: {'; '.join(sorted(problems)[:6])}",
            expected="exactly the tensors that the configuration describes",
            remedy=f"check that config.json and the weights belong together ({source})",
        )


def check_same_vocabulary(first_dir: Path, last_dir: Path) -> None:
    """The configuration compares the sizes; here the tokens are compared, where both checkpoints name theirs."""
    files = [directory / "tokenizer.json" for directory in (first_dir, last_dir)]
    if not all(file.is_file() for file in files):
        return
    first, last = (_tokens(read_json(file)) for file in files)
    if first != last:
        different = sorted(map(str, first ^ last))
        raise ModelError(
            "the vocabularies of the two checkpoints differ",
            value=f"{len(different)} entries, such as {', '.join(different[:4])}",
            expected="the same token for every id",
            remedy="pair two models of one tokenizer",
        )


def _tokens(tokenizer: dict[str, Any]) -> set[tuple[str, int]]:
    added = {(token["content"], token["id"]) for token in tokenizer.get("added_tokens") or []}
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    return added | (set(vocabulary.items()) if isinstance(vocabulary, dict) else set())
