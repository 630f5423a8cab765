"""The JSON Schema of the study file (draft 2020-12), for editors that complete and check while one types.

Counts may say K, M and G, a list of one may be written without brackets, and a sweep is a list of values, as in the
file itself. Unknown keys, wrong types and values out of range are refused. What concerns several parts at once
(micro-batches that divide a batch, a trace that names its transcoders) only `interp validate` knows.

In an editor with the YAML language server, the first line of a study may say where the schema is:
    # yaml-language-server: $schema=study.schema.json
"""

from __future__ import annotations

from typing import Any

from interp.spec.study import Study
from interp.spec.sweep import SWEPT

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """The schema, as plain data."""
    schema = Study.model_json_schema(by_alias=True, mode="validation")
    _allow_sweeps(schema["$defs"])
    return {"$schema": DIALECT, **_tidied(schema), "title": "interp study"}


def _allow_sweeps(definitions: dict[str, Any]) -> None:
    """A list of what the key takes, at every key that can be swept."""
    trained = definitions["TrainedDictionary"]["properties"]
    activations = [name.rpartition("/")[2] for name in trained["activation"]["discriminator"]["mapping"].values()]
    for *above, key in SWEPT:
        owners = [definitions[name]["properties"] for name in activations] if above else [trained]
        for fields in owners:
            if key in fields:
                fields[key] = _or_list(fields[key])


def _or_list(field: dict[str, Any]) -> dict[str, Any]:
    about = {name: value for name, value in field.items() if name in ("default", "description", "title")}
    one = {name: value for name, value in field.items() if name not in about}
    ways = [way for way in one.get("anyOf", [one]) if way != {"type": "null"}]
    item = ways[0] if len(ways) == 1 else {"anyOf": ways}
    several = {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}
    return {"anyOf": [*one.get("anyOf", [one]), several], **about}


def _tidied(node: Any, *, names: bool = False) -> Any:
    """Without what only pydantic or OpenAPI know; `names` is true where the keys are a model's fields."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidied(value, names=key in ("properties", "$defs")) for key, value in node.items()}
    if names:
        return tidy
    if tidy.pop("interp", None) == "execution":
        told = "how it runs, not what is computed: in no artifact's key"
        tidy["description"] = f"{tidy['description']} ({told})" if "description" in tidy else told
    for key in ("discriminator", "title"):
        tidy.pop(key, None)
    return tidy
