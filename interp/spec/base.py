"""What every part of a study has in common: it is frozen, closed, and its numbers may say K, M or G."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

_QUANTITY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMG])\s*$", re.IGNORECASE)
_SCALE = {"K": 10**3, "M": 10**6, "G": 10**9}

EXECUTION: dict[str, Any] = {"interp": "execution"}
"""`json_schema_extra` of a field that says how, not what: it is left out of every key."""


class SpecModel(BaseModel):
    """A part of a study: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class Disagreement(ValueError):
    """Parts of a study that do not fit together: each problem is (path of keys, what is wrong)."""

    def __init__(self, problems: list[tuple[tuple[str | int, ...], str]]):
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {what}" for path, what in problems))


def parse_quantity(value: Any) -> Any:
    """`'1.5M'` -> 1500000; an int stays as it is; anything else is left for pydantic to refuse.

    Raises:
        ValueError: the suffix gives no whole number.
    """
    if isinstance(value, bool):
        raise ValueError("expected a number such as 4096, 10K, 1.5M or 2G, not true or false")
    if isinstance(value, str) and (match := _QUANTITY.match(value)):
        exact = Decimal(match[1]) * _SCALE[match[2].upper()]
        if exact != int(exact):
            raise ValueError(f"{value!r} is not a whole number")
        return int(exact)
    return value


def refuse_truth(value: Any) -> Any:
    """pydantic would read `lr: true` as 1.0."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def count_schema(minimum: int) -> WithJsonSchema:
    """What an editor should accept: a whole number, or text with a suffix."""
    text = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[KMGkmg]\s*$", "examples": ["10K", "1.5M", "2G"]}
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": minimum}, text]})


Count = Annotated[int, BeforeValidator(parse_quantity), Field(ge=0), count_schema(0)]
"""A number of tokens, steps or latents; `K`, `M` and `G` mean 10^3, 10^6 and 10^9."""

PositiveCount = Annotated[int, BeforeValidator(parse_quantity), Field(ge=1), count_schema(1)]


def refuse_credentials(url: str) -> str:
    """A URL with `user:password@` in it would carry them into plans, manifests and logs."""
    rest = url.partition("://")[2]
    if rest and "@" in rest.split("/", 1)[0]:
        raise PydanticCustomError("credentials", "credentials do not belong into a study")
    return url


Source = Annotated[str, Field(min_length=1), AfterValidator(refuse_credentials)]
"""A path or a URL."""

NUMBER = BeforeValidator(refuse_truth)
"""For floats, after their bounds: `Annotated[float, Field(gt=0), NUMBER]`."""
