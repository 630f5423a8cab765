"""The configuration of a SplitLlama: two Llama configurations, how many layers each gives, and the adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from transformers import LlamaConfig, PreTrainedConfig

from interp.errors import ModelError

LlamaSource: TypeAlias = Mapping[str, Any] | LlamaConfig | str | Path
"""What names a Llama configuration: the values, the object, a config.json, or a directory that holds one."""


class SplitLlamaConfig(PreTrainedConfig):
    """The two Llamas, how many layers each gives, and the adapter between them.

    Args:
        first: the small Llama; a path is read at construction and its content kept.
        last: the large Llama, likewise.
        n_first: how many of the small model's layers are kept, from its first.
        n_last: how many of the large model's layers are kept, up to its last.
        adapter_mlp: two linear maps with a ReLU between them, where False means one linear map.
        adapter_hidden_size: width between the two maps; None stands for the width of the large model.
        vocab_size: None stands for the vocabulary of the two Llamas, which must agree.
        model_path: a saved SplitLlama. Its config.json is read, and `SplitLlama(config)` loads its weights.
    """

    model_type = "split-llama"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    first: Any = None
    last: Any = None
    n_first: int = 0
    n_last: int = 0
    adapter_mlp: bool = False
    adapter_hidden_size: int | None = None
    vocab_size: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    model_path: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model_path is not None:
            kwargs = self._fill_from(self.model_path, kwargs)
        self.first = inlined(self.first, "first")
        self.last = inlined(self.last, "last")
        super().__post_init__(**kwargs)
        self._complete_from_llamas()
        self._check()

    @classmethod
    def from_llamas(
        cls, first: LlamaSource, last: LlamaSource, n_first: int, n_last: int, adapter_mlp: bool = False, **kwargs: Any
    ) -> SplitLlamaConfig:
        """The configuration that joins two Llamas; further arguments are fields of the configuration."""
        return cls(first=first, last=last, n_first=n_first, n_last=n_last, adapter_mlp=adapter_mlp, **kwargs)

    def use_attention(self, implementation: str | None) -> None:
        """Give both groups one implementation: attention and mask must be of one kind."""
        self.first._attn_implementation = self.last._attn_implementation = implementation

    @property
    def last_layer_indices(self) -> range:
        """Checkpoint indices of the second group: the last layers of the large Llama."""
        return range(self.last.num_hidden_layers - self.n_last, self.last.num_hidden_layers)

    @property
    def num_hidden_layers(self) -> int:
        return self.n_first + self.n_last

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream that the head reads."""
        return self.last.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        return min(self.first.max_position_embeddings, self.last.max_position_embeddings)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        # Where a model was read from is no property of the model.
        values.pop("model_path", None)
        return values

    def _fill_from(self, model_path: str | Path, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take from the saved config.json everything that the caller left at its default."""
        self.model_path = str(model_path)
        saved = read_json(config_file(model_path))
        if saved.get("model_type") != self.model_type:
            raise ModelError(
                f"{model_path} holds another kind of model",
                value=saved.get("model_type"),
                expected=f'"model_type": "{self.model_type}"',
                remedy="give the directory of a saved SplitLlama; two Llamas are joined by `from_llamas`",
            )
        fields = type(self).__dataclass_fields__
        for name, value in saved.items():
            if name in ("model_type", "model_path", "transformers_version"):
                continue
            if name not in fields:
                kwargs.setdefault(name, value)
            elif getattr(self, name) == fields[name].default:
                setattr(self, name, value)
        return kwargs

    def _complete_from_llamas(self) -> None:
        if self.first.vocab_size != self.last.vocab_size and self.vocab_size is None:
            raise ModelError(
                "the vocabulary sizes of the two Llamas differ",
                value=f"first {self.first.vocab_size}, last {self.last.vocab_size}",
                expected="equal sizes",
                remedy="pair two models of one tokenizer, or give vocab_size where the weights are trained afresh",
            )
        self.vocab_size = self.first.vocab_size if self.vocab_size is None else self.vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.last, name))

    def _check(self) -> None:
        allowed = {
            "n_first": range(1, self.first.num_hidden_layers + 1),
            "n_last": range(1, self.last.num_hidden_layers + 1),
            # The embedding and the head have different widths.
            "tie_word_embeddings": [False],
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ModelError(
                    f"{name} does not fit the two Llamas",
                    value=getattr(self, name),
                    expected=f"{values[0]} to {values[-1]}" if len(values) > 1 else str(values[0]),
                    remedy=f"correct {name}; a group has at least one layer and at most those of its Llama",
                )


def inlined(source: LlamaSource | None, role: str) -> LlamaConfig:
    """The Llama configuration that `source` names, as an object of its own."""
    if isinstance(source, (str, Path)):
        source = read_json(config_file(source))
    values = source.to_dict() if isinstance(source, LlamaConfig) else source
    kind = values.get("model_type", "llama") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or kind != "llama":
        raise ModelError(
            f"`{role}` does not name a Llama",
            value="nothing" if kind is None else kind,
            expected="the values of a Llama config, a config.json or a directory that holds one",
            remedy=f"give `{role}` one of these, with model_type llama",
        )
    return LlamaConfig(**{k: v for k, v in values.items() if k not in ("model_type", "transformers_version")})


def config_file(source: str | Path) -> Path:
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ModelError(
            "there is no model configuration at this path",
            value=str(source),
            expected="a config.json, or a directory that holds one",
            remedy="check the path; a hub model must be downloaded first",
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path} is not usable", value=str(error), expected="a JSON object", remedy="copy the file again"
        ) from error
