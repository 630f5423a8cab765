"""Where the dictionaries of a study are, for the stages that use them: fitted by the study, or borrowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import DictionaryError
from interp.plan.specs import borrowed_role
from interp.spec.dictionary import TrainedDictionary

if TYPE_CHECKING:
    from interp.dictionaries import SparseDictionary
    from interp.spec.study import Study
    from interp.store import Artifact
    from interp.wrapper import HookedModel


@dataclass(frozen=True)
class DictionarySet:
    """One set; small enough to travel to a worker.

    Attributes:
        artifact: the artifact that holds it, or None for a folder.
        folder: the set's folder: in the artifact, or on its own.
    """

    name: str
    artifact: Artifact | None
    folder: str

    def load(self, model: HookedModel) -> dict[str, SparseDictionary]:
        """The dictionaries by place, in the order of their layers, on the model's device and for use, not training.

        Raises:
            ModelMismatch: they were trained on another model.
        """
        from interp.dictionaries import load_dictionaries

        root = Path(self.folder) if self.artifact is None else self.artifact.local_dir() / self.folder
        loaded = load_dictionaries(root, model=model)
        places = [dictionary.config.at for dictionary in loaded.values()]
        for at in places:
            if places.count(at) > 1:
                raise DictionaryError(
                    f"the set {self.name!r} has several dictionaries at {at}",
                    value=str(root),
                    expected="one set of dictionaries, at most one for each place",
                    remedy="name the folder of one set: a subfolder of this one",
                )
        return {
            dictionary.config.at: dictionary.to(model.device).eval().requires_grad_(False)
            for dictionary in loaded.values()
        }


def dictionary_sets(study: Study, inputs: Mapping[str, Artifact]) -> tuple[DictionarySet, ...]:
    """The sets of a study, in its order.

    Args:
        inputs: of a stage that uses all of them, by role.
    """
    return tuple(dictionary_set(study, dictionary.name, inputs) for dictionary in study.dictionaries)


def dictionary_set(study: Study, name: str, inputs: Mapping[str, Artifact]) -> DictionarySet:
    """One set: of the study's own fit, of another artifact, or of a folder."""
    spec = next(dictionary for dictionary in study.dictionaries if dictionary.name == name)
    if isinstance(spec, TrainedDictionary):
        return DictionarySet(name, inputs["fit"], name)
    role = borrowed_role(name)
    return DictionarySet(name, inputs[role], name) if role in inputs else DictionarySet(name, None, spec.source)
