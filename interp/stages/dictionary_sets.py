"""Where the dictionaries of a study are, for the stages that use them: fitted by the study, or borrowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from interp.plan.specs import borrowed_role
from interp.sources.dictionaries import dictionary_revision, fetched, require_content
from interp.spec.dictionary import TrainedDictionary

if TYPE_CHECKING:
    from interp.dictionaries import Dictionary
    from interp.spec.study import Study
    from interp.store import Artifact
    from interp.wrapper import HookedModel


@dataclass(frozen=True)
class DictionarySet:
    """One set; small enough to travel to a worker.

    Attributes:
        artifact: the artifact that holds it, or None for a folder.
        folder: the set's folder: in the artifact, or on its own; it may be a file, or `hf://org/name`.
        source: the study's model. Files of other programs name no fingerprint: that they belong to it is the study's
            word, and `config.model.foreign` of the dictionaries says so.
        format: who wrote the files; None: they tell.
        mlp: what becomes of the MLPs, as the study says.
        content: what the folder held when the study was planned; None: nobody says.
    """

    name: str
    artifact: Artifact | None
    folder: str
    source: str = ""
    format: str | None = None
    mlp: Literal["replaced", "kept"] = "replaced"
    content: str | None = None

    def load(self, model: HookedModel) -> dict[str, Dictionary]:
        """The dictionaries by place, in the order of their layers, on the model's device and for use, not training.

        A cross-layer transcoder comes alone, as `cross-layer`.

        Raises:
            ModelMismatch: they were trained on another model.
            DictionaryError: they are in no format that is read, or not for this model's places and sizes.
            SourceError: they are not there, cannot be brought here, or are not those that were planned.
        """
        from interp.dictionaries.foreign import Claim, read_dictionaries

        self._require_planned()
        root = fetched(self.folder) if self.artifact is None else self.artifact.local_dir() / self.folder
        loaded = read_dictionaries(root, Claim(model, self.source), self.format)
        self._require_planned()  # still: files may change, and branches of the hub move, while they are read
        return {at: found.to(model.device).eval().requires_grad_(False) for at, found in loaded.items()}

    def _require_planned(self) -> None:
        if self.artifact is None and self.content is not None:
            require_content(self.folder, dictionary_revision(self.folder), self.content)


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
    artifact = inputs.get(role)
    folder = spec.source if artifact is None else name
    return DictionarySet(name, artifact, folder, study.model.source, spec.format, spec.mlp, spec.content)
