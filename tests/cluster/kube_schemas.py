"""RayJobs held against KubeRay's own schemas, where there is a folder of them: $INTERP_KUBERAY_SCHEMAS."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

from kube_kinds import Kind, Object, Refused

Admission = Callable[[Kind, Object, bool], None]


def schema_folder() -> Path | None:
    """The folder that the environment names, if it names one."""
    named = os.environ.get("INTERP_KUBERAY_SCHEMAS")
    return Path(named) if named else None


def admission_by_schema(folder: Path | None = None) -> Admission | None:
    """Refuses, with 422, what the schema of its kind does not allow. None without a folder."""
    folder = folder or schema_folder()
    if folder is None:
        return None
    import jsonschema

    validators = {
        row: jsonschema.Draft202012Validator(json.loads(gzip.decompress((folder / name).read_bytes())))
        for row, name in {"RayJob": "rayjobs-v1.schema.json.gz", "RayCluster": "rayclusters-v1.schema.json.gz"}.items()
    }

    def admit(row: Kind, obj: Object, strict: bool) -> None:
        if row.kind not in validators:
            return
        causes = []
        for error in list(validators[row.kind].iter_errors(obj)):
            where = ".".join(str(part) for part in error.absolute_path)
            if error.validator != "additionalProperties":
                causes.append((where or "<root>", f"Invalid value: {error.message}"))
                continue
            unknown = sorted(set(error.instance) - set(error.schema.get("properties", {})))
            if strict:
                named = ", ".join(f'unknown field "{where}.{name}"' for name in unknown)
                raise Refused(
                    400,
                    "BadRequest",
                    f"{row.kind} in version {row.version!r} cannot be handled: strict decoding error: {named}",
                )
            for name in unknown:
                # As a server that is not asked to be strict: what the schema does not know is dropped.
                del error.instance[name]
        if causes:
            raise row.invalid(obj["metadata"].get("name", ""), causes)

    return admit
