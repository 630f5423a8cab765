"""Dictionaries of other programs: read for a model on the user's word, and written for them."""

from __future__ import annotations

from interp.dictionaries.foreign.circuit_tracer_writer import write_circuit_tracer
from interp.dictionaries.foreign.claim import Claim, ForeignModel
from interp.dictionaries.foreign.formats import (
    FORMATS,
    Format,
    Loaded,
    first_other,
    format_named,
    read_dictionaries,
    recognise,
    writable,
    write_dictionaries,
)

__all__ = [
    "FORMATS",
    "Claim",
    "ForeignModel",
    "Format",
    "Loaded",
    "first_other",
    "format_named",
    "read_dictionaries",
    "recognise",
    "writable",
    "write_circuit_tracer",
    "write_dictionaries",
]
