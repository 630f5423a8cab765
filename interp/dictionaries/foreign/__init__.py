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
from interp.dictionaries.foreign.hub_card import Card, artifact_of, evaluation_of, for_others, public_name, write_card

__all__ = [
    "FORMATS",
    "Card",
    "Claim",
    "ForeignModel",
    "Format",
    "Loaded",
    "artifact_of",
    "evaluation_of",
    "first_other",
    "for_others",
    "format_named",
    "public_name",
    "read_dictionaries",
    "recognise",
    "writable",
    "write_card",
    "write_circuit_tracer",
    "write_dictionaries",
]
