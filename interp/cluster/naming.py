"""The name of a run: a slug of the study's name and a digest of what it makes and where. Submitting twice is one run.

KubeRay allows a RayJob 47 characters, DNS-1035: a lower-case letter, then letters, digits and '-'.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

LONGEST = 47
_DIGEST = 8
_RUN = re.compile(r"^[a-z]([a-z0-9-]*[a-z0-9])?$")


def run_name(study: str, keys: Iterable[str], store: str) -> str:
    """`<slug>-<digest>`, at most 47 characters, for any study name.

    Args:
        keys: of all stages of the plan.
        store: the URL of its store.
    """
    text = "\n".join([store, study, *sorted(keys)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    if not slug or not slug[0].isalpha():
        slug = f"run-{slug}".rstrip("-")
    return f"{slug[: LONGEST - _DIGEST - 1].rstrip('-')}-{digest}"


def is_run_name(text: str) -> bool:
    return len(text) <= LONGEST and _RUN.fullmatch(text) is not None


def label_value(text: str) -> str:
    """What of a text can be the value of a label: at most 63 letters, digits, '-', '_' and '.', the ends letters or
    digits. A name of a study is one as it is."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")
