"""What makes a folder of dictionaries a repository of the Hugging Face hub: a model card, and where it all comes from.

    README.md           front matter (library, tags, base model; the license is left to whoever uploads), a table of
                        the dictionaries, their figures where an evaluation is given, how to load them
    provenance.json     the same for programs: model and fingerprint, corpus and artifact keys, versions

The dictionaries lie beside them in a layout of `FORMATS`, so that `hf://org/name` reads what was uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from interp.dictionaries.dictionary import Dictionary
from interp.errors import SourceError, SpecError
from interp.sources.hub import REPOSITORY
from interp.version import __version__

README, PROVENANCE = "README.md", "provenance.json"
_MARK = "<!-- written by interp convert -->"
_FORMAT = "interp/hub/v1"
_TAGS = {
    "sae": "sparse-autoencoder",
    "transcoder": "transcoder",
    "skip-transcoder": "transcoder",
    "cross-layer-transcoder": "cross-layer-transcoder",
}
_LICENSE = "# license: yours to choose; the hub shows it when it is here"
_FIRST_METRICS = ("fvu", "l0", "dead", "cosine", "ce_recovered", "kl")
_NO_METRICS = ("dictionary", "at", "tokens")


@dataclass(frozen=True)
class Card:
    """What a card says beyond the dictionaries themselves.

    Attributes:
        repository: `org/name` where it is uploaded; None: not known yet.
        layout: the format of the dictionaries beside it.
        model_name: what others load the model by.
        base_model: its name on the hub, where it has one.
        source: where they were read from, if that is a place of the hub, by its commit.
        artifact: stage and key of the artifact that they come from.
        evaluation: rows by place, as a study's evaluation.json has them.
    """

    repository: str | None
    layout: str
    model_name: str
    base_model: str | None = None
    source: str | None = None
    artifact: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_card(folder: Path, loaded: Mapping[str, Dictionary], card: Card) -> None:
    """Write both files beside the dictionaries. No path of this machine goes into them; see `for_others`."""
    base = card.base_model if card.base_model and REPOSITORY.fullmatch(card.base_model) else None
    loaded, card = for_others(loaded), replace(card, model_name=public_name(card.model_name), base_model=base)
    folder.mkdir(parents=True, exist_ok=True)
    provenance = json.dumps(_provenance(loaded, card), indent=2, ensure_ascii=False)
    (folder / PROVENANCE).write_text(provenance + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(folder, loaded, card), encoding="utf-8")


def for_others(loaded: Mapping[str, Dictionary]) -> Mapping[str, Dictionary]:
    """The dictionaries, which name a model that is a folder of this machine by its last part alone from now on."""
    for dictionary in loaded.values():
        model = dictionary.config.model
        if model is not None:
            named = model.model_copy(update={"source": public_name(model.source)})
            dictionary.config = dictionary.config.model_copy(update={"model": named})
    return loaded


def public_name(source: str) -> str:
    """A model's name for others: of a folder of this machine, the last part."""
    here = source.startswith(("/", "~", ".", "file:")) or ("://" not in source and Path(source).exists())
    return Path(source.removeprefix("file://")).expanduser().absolute().name if here else source


def is_ours(path: Path) -> bool:
    """Whether a file is one that `write_card` made: it may be replaced."""
    mark = {README: _MARK, PROVENANCE: f'"{_FORMAT}"'}.get(path.name)
    return mark is not None and path.is_file() and mark in path.read_text(encoding="utf-8", errors="replace")


def evaluation_of(path: Path, places: Sequence[str], name: str | None = None) -> dict[str, dict[str, Any]]:
    """The figures of these places in an evaluation.json.

    Args:
        name: of the set in the study, where several sets stand at these places.

    Raises:
        SourceError: it is no such file.
        SpecError: it has none of these places, or several sets of them.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = rows if isinstance(rows, list) else rows["rows"]
        kept = [dict(row) for row in rows if row["at"] in places and name in (None, row["dictionary"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"this is no evaluation of dictionaries: {path}"
        raise SourceError(what, value=str(error), expected="evaluation.json of a study") from error
    names = sorted({row["dictionary"] for row in kept})
    if len(names) != 1:
        raise SpecError(
            f"the evaluation has {'several sets' if names else 'no figures'} of these places: {path}",
            value=", ".join(names) or "none",
            expected=f"figures of one set at {', '.join(places)}",
            remedy="name the set with --set" if names else "give the evaluation of these dictionaries",
        )
    return {row["at"]: row for row in kept}


def artifact_of(folder: Path) -> dict[str, str]:
    """Stage and key of the artifact that a folder of the store belongs to; nothing where it belongs to none."""
    for path in (folder, *folder.absolute().parents[:2]):
        manifest = path / "manifest.json"
        if manifest.is_file():
            try:
                said = json.loads(manifest.read_text(encoding="utf-8"))
            except ValueError:
                return {}
            body = said if isinstance(said, dict) else {}
            return {name: body[name] for name in ("stage", "key") if isinstance(body.get(name), str)}
    return {}


def _provenance(loaded: Mapping[str, Dictionary], card: Card) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "interp_version": __version__,
        "layout": card.layout,
        "model_name": card.model_name,
        "source": card.source,
        "artifact": dict(card.artifact),
        "dictionaries": {
            at: {
                "kind": dictionary.config.kind,
                "activation": dictionary.config.activation.model_dump(mode="json"),
                "hooks": [[place.hook_in, place.hook_out] for place in dictionary.places],
                "n_latents": [place.n_latents for place in dictionary.places],
                "dtype": dictionary.config.dtype,
                "model": None if dictionary.config.model is None else dictionary.config.model.model_dump(mode="json"),
                "corpus": dictionary.config.corpus,
                "interp_version": dictionary.config.interp_version,
            }
            for at, dictionary in loaded.items()
        },
        "evaluation": dict(card.evaluation),
    }


def _readme(folder: Path, loaded: Mapping[str, Dictionary], card: Card) -> str:
    front: dict[str, Any] = {
        "library_name": "interp",
        "tags": sorted({"mechanistic-interpretability", "interp", card.layout, *_tags(loaded)}),
    }
    if card.base_model:
        front["base_model"] = card.base_model
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}{_LICENSE}\n---",
        _MARK,
        f"# {(card.repository or 'Sparse dictionaries').rpartition('/')[2]}",
        f"{_number(loaded)} of `{card.model_name}`, in the format of {card.layout}.",
        _dictionaries(loaded),
        *([f"## Figures\n\n{_figures(card)}"] if card.evaluation else []),
        f"## Loading\n\n{_loading(folder, loaded, card)}",
        f"## Where they come from\n\n{_origin(loaded, card)}",
    ]
    return "\n\n".join(parts) + "\n"


def _tags(loaded: Mapping[str, Dictionary]) -> set[str]:
    return {_TAGS[dictionary.config.kind] for dictionary in loaded.values()}


def _number(loaded: Mapping[str, Dictionary]) -> str:
    kinds = sorted({dictionary.config.kind for dictionary in loaded.values()})
    return f"{len(loaded)} {'dictionary' if len(loaded) == 1 else 'dictionaries'} ({', '.join(kinds)})"


def _dictionaries(loaded: Mapping[str, Dictionary]) -> str:
    rows = []
    for at, dictionary in loaded.items():
        activation = dictionary.config.activation
        k = getattr(activation, "k", None)
        for place in dictionary.places:
            reads = (place.hook_in, place.hook_out, str(place.n_latents), f"{place.d_in} to {place.d_out}")
            rows.append((at, dictionary.config.kind, *reads, activation.type, "" if k is None else str(k)))
    columns = ("place", "kind", "reads", "reconstructs", "latents", "dimensions", "activation", "k")
    return _table(columns, rows)


def _figures(card: Card) -> str:
    there = dict.fromkeys(key for row in card.evaluation.values() for key in row if key not in _NO_METRICS)
    names = [*(name for name in _FIRST_METRICS if name in there), *(key for key in there if key not in _FIRST_METRICS)]
    numbers = [name for name in names if all(_is_number(row.get(name)) for row in card.evaluation.values())]
    rows = [(at, *(f"{row[name]:.4g}" for name in numbers)) for at, row in card.evaluation.items()]
    tokens = {row.get("tokens") for row in card.evaluation.values()}
    on = f"On {next(iter(tokens)):,} held-out tokens.\n\n" if len(tokens) == 1 and None not in tokens else ""
    return on + _table(("place", *numbers), rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _loading(folder: Path, loaded: Mapping[str, Dictionary], card: Card) -> str:
    repository = card.repository or "ORG/NAME"
    study = f"dictionaries:\n  - {{name: borrowed, from: hf://{repository}}}"
    model = f"hf://{card.base_model}" if card.base_model else "MODEL"
    convert = f"interp convert hf://{repository} there --to FORMAT --model {model}"
    parts = [
        f"In a study of interp:\n\n```yaml\n{study}\n```",
        f"As another program's files (`FORMAT`: saelens, sparsify, circuit-tracer):\n\n```sh\n{convert}\n```",
    ]
    if card.layout == "saelens":
        first = min(path.parent.relative_to(folder).as_posix() for path in folder.rglob("cfg.json"))
        code = f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{repository}", "{first}")'
        parts.append(f"With SAELens, by the name of a folder of this repository:\n\n```python\n{code}\n```")
    if card.layout == "sparsify":
        code = f'from sparsify import SparseCoder\n\ncoders = SparseCoder.load_many("{repository}")'
        parts.append(f"With sparsify:\n\n```python\n{code}\n```")
    if card.layout == "circuit-tracer":
        code = f'ReplacementModel.from_pretrained("{card.model_name}", "{repository}")'
        topk = any(dictionary.config.activation.type == "topk" for dictionary in loaded.values())
        warning = " It takes sets of topk for relu unless it is given TopK by hand." if topk else ""
        parts.append(f"With circuit-tracer:{warning}\n\n```python\n{code}\n```")
    return "\n\n".join(parts)


def _origin(loaded: Mapping[str, Dictionary], card: Card) -> str:
    models = {dictionary.config.model for dictionary in loaded.values()}
    lines = [f"- interp {__version__}"]
    for model in sorted((model for model in models if model is not None), key=lambda model: model.fingerprint):
        foreign = f", on the word of whoever converted them from {model.foreign}" if model.foreign else ""
        lines.append(f"- model `{model.source}`, fingerprint `{model.fingerprint}`{foreign}")
    corpora = sorted({dictionary.config.corpus for dictionary in loaded.values() if dictionary.config.corpus})
    lines += [f"- corpus artifact `{corpus}`" for corpus in corpora]
    lines += [f"- read from `{card.source}`"] if card.source else []
    if card.artifact:
        lines.append(f"- artifact `{card.artifact.get('stage')}/{card.artifact.get('key')}`")
    return "\n".join([*lines, f"\n`{PROVENANCE}` has all of this for programs."])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
