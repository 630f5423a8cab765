"""Load a transformer from wherever a study says it is, safely.

Weights are read from safetensors or GGUF only: a pickle can execute code, and is refused. So is code that comes with
a checkpoint. A checkpoint that lacks weights is an error: nothing is ever filled with random values. That the row of
its family describes the model is proved when it is wrapped (`interp.wrapper.HookedModel`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging as transformers_logging

import interp.models.split_llama  # noqa: F401 - makes the architecture known to transformers
from interp.errors import ModelError, SourceError
from interp.models.families import Family, family_named, family_of
from interp.sources.resolve import ResolvedModel, resolve_model, resolve_tokenizer
from interp.spec.study import ModelSpec

_LOG = logging.getLogger(__name__)

Attention = Literal["eager", "sdpa"]
"""`eager` computes attention patterns, which tracing needs; `sdpa` is faster and does not."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        fingerprint: revision of its content: dictionaries are tied to it.
        source: what the study called it.
    """

    model: nn.Module
    tokenizer: Any | None
    family: Family
    fingerprint: str
    source: str
    config: Any


def load_model(
    source: ModelSpec | str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    attention: Attention = "eager",
    family: Family | str | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        source: a study's model, or its source alone: a directory, `builtin://`, `hf://org/name`, a `.gguf` file.
        dtype: overrides the study's; without a study, float32.
        family: overrides the row of the families table that the configuration's `model_type` selects.

    Raises:
        ModelError: the checkpoint cannot be read or its family is not known.
        UnsafeFormat: its weights are in a format that can execute code.
        SourceError: there is no model, or a tokenizer that the study names is not there.
    """
    spec = source if isinstance(source, ModelSpec) else ModelSpec.model_validate({"source": str(source)})
    resolved = resolve_model(spec)
    chosen = _family(family or spec.family, resolved.config.get("model_type"))
    model = _read_weights(resolved, torch_dtype(dtype or spec.dtype), attention).to(device).eval()
    return LoadedModel(
        model=model,
        tokenizer=_tokenizer_if_any(spec),
        family=chosen,
        fingerprint=resolved.revision,
        source=spec.source,
        config=model.config,
    )


def torch_dtype(name: torch.dtype | str) -> torch.dtype:
    """float32, bfloat16 and float16 by name."""
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError("models do not come in this dtype", value=name, expected="float32, bfloat16 or float16")
    return dtype


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer that the study names, or the one beside the weights.

    Raises:
        SourceError: there is none.
        ModelError: there is one that cannot be loaded.
    """
    found = resolve_tokenizer(spec)
    where = found.path
    options: dict[str, Any] = {"trust_remote_code": False}
    if found.kind == "gguf":
        where, options["gguf_file"] = str(Path(where).parent), Path(where).name
        _check_gguf_has_tokenizer(Path(found.path))
    elif found.kind == "hub":
        options["revision"] = found.revision
    try:
        return AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelError(
            "the tokenizer cannot be loaded",
            value=f"{found.path}: {error}",
            expected="tokenizer.json and tokenizer_config.json",
            remedy="name another with `tokenizer:` in the study's model",
        ) from error


def _tokenizer_if_any(spec: ModelSpec) -> Any | None:
    try:
        return load_tokenizer(spec)
    except SourceError:
        # The model was found in this place; a model without a tokenizer reads token ids. A named one must be there.
        if spec.tokenizer is not None:
            raise
        _LOG.info("%s has no tokenizer", spec.source)
        return None


def _check_gguf_has_tokenizer(file: Path) -> None:
    from gguf import GGUFReader

    if "tokenizer.ggml.model" not in GGUFReader(file).fields:
        raise SourceError(
            "the GGUF file holds no tokenizer",
            value=str(file),
            expected="tokenizer.ggml.model among its fields",
            remedy="set model.tokenizer to a folder or hub repository that has one",
        )


def _family(named: Family | str | None, model_type: str | None) -> Family:
    """The row, before anything large is read."""
    if isinstance(named, Family):
        return named
    return family_of(model_type) if named is None else family_named(named)


def _read_weights(resolved: ResolvedModel, dtype: torch.dtype, attention: Attention) -> Any:
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    # What is missing or of another shape is reported below by name, where transformers would not say which it was.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if resolved.kind == "gguf":
            model, found = _read_gguf(Path(resolved.path), options)
        else:
            options |= {"trust_remote_code": False, "use_safetensors": True}
            revision = {"revision": resolved.revision} if resolved.kind == "hub" else {}
            with _quiet():
                model, found = AutoModelForCausalLM.from_pretrained(resolved.path, **options, **revision)
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, ImportError, SafetensorError) as error:
        raise ModelError(
            "the checkpoint cannot be loaded",
            value=f"{resolved.path}: {error}",
            expected="a causal language model that transformers knows, in safetensors or GGUF",
            remedy="check that its files are complete and of one model",
        ) from error
    _check_complete(resolved, found)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar of transformers' own: it would run through the lines of a run, once for every process."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _read_gguf(file: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The tensors of a GGUF file, dequantised, in the model that its fields describe.

    `from_pretrained(gguf_file=)` does the same but asks for one more package and marks the model as quantised.
    """
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=skeleton, torch_dtype=options["dtype"])
    return type(skeleton).from_pretrained(None, config=config, state_dict=read["tensors"], **options)


def _check_complete(resolved: ResolvedModel, found: dict[str, Any]) -> None:
    """transformers fills what is missing with random values and goes on; here that is an error."""
    problems = [f"missing {name}" for name in sorted(found.get("missing_keys", ()))]
    for name, stored, wanted in sorted(found.get("mismatched_keys", ())):
        problems.append(f"{name} is {tuple(stored)}, not {tuple(wanted)}")
    if problems:
        raise ModelError(
            f"the weights of {resolved.path} do not fit its configuration",
            value="; ".join(problems[:8]),
            expected="every tensor of the model, in its shape",
            remedy="check that config.json and the weights belong together",
        )
    if left_over := sorted(found.get("unexpected_keys", ())):
        _LOG.warning("%s holds tensors that the model does not use: %s", resolved.path, ", ".join(left_over[:5]))
