"""The JSON Schema of the study file (draft 2020-12), for editors that complete and check while one types.

Counts may say K, M and G, and a list of one may be written without brackets, as in the file itself. Unknown keys,
wrong types and values out of range are refused. What concerns several parts at once (micro-batches that divide a batch,
a trace that names its transcoders) only `interp validate` knows.

In an editor with the YAML language server, the first line of a study may say where the schema is:
    # yaml-language-server: $schema=study.schema.json
"""

from __future__ import annotations

from typing import Any

from interp.spec.study import Study

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """The schema, as plain data."""
    schema = Study.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": DIALECT, **_tidied(schema), "title": "interp study"}


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
