"""What every dictionary has, whatever it computes: a config, the model that it belongs to, a folder on disk.

A dictionary reads and replaces activations at one place or at several (`places`, in execution order). Those who
only use it go from place to place: `encode_at` gives the activations of a place's latents, `decode_from` what they add
there and at every later place. The reconstruction at a place is the sum of what it and the earlier ones add.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.dictionaries import storage
from interp.dictionaries.config import CrossLayerConfig, DictionaryConfig
from interp.errors import DictionaryError, ModelMismatch

UNCHECKED = "unchecked"
"""Stands for the model in `load` when there is none to compare with. Say it only for weights, never to trace."""


@runtime_checkable
class HasFingerprint(Protocol):
    """A model that knows what it is: a `HookedModel`."""

    @property
    def fingerprint(self) -> str: ...


class DictionaryPlace(Protocol):
    """Where a dictionary reads and replaces activations; `at` is how a study writes it."""

    @property
    def at(self) -> str: ...
    @property
    def hook_in(self) -> str: ...
    @property
    def hook_out(self) -> str: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def n_latents(self) -> int: ...


class Dictionary(nn.Module, ABC):
    """Common to all classes of `KINDS`, which a class enters by `class X(Dictionary, registered=True)`."""

    kinds: ClassVar[tuple[str, ...]]
    config: DictionaryConfig | CrossLayerConfig

    def __init_subclass__(cls, *, registered: bool = False, **options: Any):
        super().__init_subclass__(**options)
        for kind in cls.kinds if registered else ():
            if kind in KINDS:
                raise TypeError(f"{kind} is the kind of {KINDS[kind].__name__} and of {cls.__name__}")
            KINDS[kind] = cls

    def __init__(self, config: DictionaryConfig | CrossLayerConfig):
        super().__init__()
        if config.kind not in self.kinds:
            raise DictionaryError(
                f"a {type(self).__name__} cannot be of this kind", value=config.kind, expected=" or ".join(self.kinds)
            )
        self.config = config

    @property
    def places(self) -> Sequence[DictionaryPlace]:
        """In execution order."""
        return self.config.places

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights: what its input has to be."""
        return next(self.parameters()).dtype

    @property
    def sum_dtype(self) -> torch.dtype:
        """Of sums over places: a term more rounds none of those before it to the few digits of half precision."""
        return torch.promote_types(self.dtype, torch.float32)

    @abstractmethod
    def encode_at(self, place: int, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Activations of every latent of a place, from what the place reads."""

    @abstractmethod
    def decode_from(
        self, place: int, activations: Float[Tensor, "*batch n_latents"], x: Float[Tensor, "*batch d_in"]
    ) -> list[Float[Tensor, "*batch d_out"]]:
        """What a place adds to the reconstruction at itself, its biases included, and at each later place.

        They are to be added up in `sum_dtype`.
        """

    @staticmethod
    @abstractmethod
    def stored_name(name: str) -> str:
        """What a file calls the tensor of this name in `state_dict`."""

    def check_model(self, model: HasFingerprint | str) -> None:
        """Refuse a model that this dictionary was not trained on.

        Args:
            model: a hooked model, a fingerprint, or `UNCHECKED`.

        Raises:
            ModelMismatch: another model, or a dictionary that names none.
        """
        found = model.fingerprint if isinstance(model, HasFingerprint) else model
        if found == UNCHECKED:
            return
        own = self.config.model
        if own is None or own.fingerprint != found:
            source = f" ({own.source})" if own else ""
            raise ModelMismatch(
                f"the {self.config.kind} at {self.config.at} was trained on another model",
                value=f"model {found}",
                expected=f"model {own.fingerprint if own else 'unknown'}{source}",
                remedy="load the model that it was trained on, or train a dictionary on this one",
            )

    def save(self, folder: str | Path) -> None:
        """Write `weights.safetensors` and `config.json` into `folder`, which is made if need be.

        Raises:
            DictionaryError: it names no model, or its weights are not finite.
        """
        tensors = self.state_dict().items()
        # Weights may be views into one vector, and safetensors wants each tensor to own its memory.
        stored = {self.stored_name(name): tensor.detach().cpu().clone() for name, tensor in tensors}
        storage.write(self.config, stored, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, model: HasFingerprint | str) -> Self:
        """Read what `save` wrote, for the model that it was trained on.

        Args:
            folder: where `weights.safetensors` and `config.json` are.
            model: the hooked model, its fingerprint, or `UNCHECKED`.

        Raises:
            ModelMismatch: it was trained on another model.
            DictionaryError: a file is missing or says something impossible, or this class has no such kind.
        """
        path = Path(folder) / storage.WEIGHTS
        config = storage.read_config(path.with_name(storage.CONFIG))
        with torch.device("meta"):  # no memory, no random numbers: the file's tensors become the parameters
            dictionary = KINDS[config.kind](config)
        dictionary.check_model(model)
        if not isinstance(dictionary, cls):
            raise DictionaryError(
                f"{folder} holds no {cls.__name__}",
                value=dictionary.config.kind,
                expected=" or ".join(cls.kinds),
                remedy=f"load it as {type(dictionary).__name__}",
            )
        own = {name: dictionary.stored_name(name) for name in dictionary.state_dict()}
        tensors = storage.read_tensors(path)
        storage.require_as_expected(tensors, {own[name]: t for name, t in dictionary.state_dict().items()}, path)
        storage.require_finite(tensors, path.parent)
        dictionary.load_state_dict({name: tensors[stored] for name, stored in own.items()}, assign=True)
        return dictionary


KINDS: dict[str, type[Dictionary]] = {}
"""The class of each kind that a config can say."""
