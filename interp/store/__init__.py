"""Artifacts: what every stage makes and reads, in a folder, in memory or in S3."""

from __future__ import annotations

from interp.store.artifact import Artifact, Problem
from interp.store.digest import FileRecord
from interp.store.inventory import Entry, GcReport
from interp.store.manifest import Manifest
from interp.store.parts import Part, PartWriter
from interp.store.scratch import Scratch
from interp.store.store import Store
from interp.store.writer import Writer

__all__ = [
    "Artifact",
    "Entry",
    "FileRecord",
    "GcReport",
    "Manifest",
    "Part",
    "PartWriter",
    "Problem",
    "Scratch",
    "Store",
    "Writer",
]
