"""Values of a trainer's documents with their bounds, and the base of these documents.

The trainer runs users' data and models, so its documents are hostile input. Texts are cleaned before they are read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

INT64_MAX = 2**63 - 1
MOST_RANKS = 64
"""Processes that can share a step of TRAIN (contract/run.schema.json)."""


def clean_text(text: str) -> str:
    """Replace lone surrogates and control characters of `text`, which are unsafe for terminals and JSON readers."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(
        character if character.isprintable() or character == "\n" else " " for character in encodable
    )


def _clean(value: object) -> object:
    """Clean a text before validation, which rejects lone surrogates."""
    return clean_text(value) if isinstance(value, str) else value


def _to_utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError if UTC cannot express it."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be a moment between the years 1 and 9999 in UTC") from error


Text16 = Annotated[str, Field(max_length=16), BeforeValidator(_clean)]
Text64 = Annotated[str, Field(max_length=64), BeforeValidator(_clean)]
Text128 = Annotated[str, Field(max_length=128), BeforeValidator(_clean)]
Text256 = Annotated[str, Field(max_length=256), BeforeValidator(_clean)]
Text512 = Annotated[str, Field(max_length=512), BeforeValidator(_clean)]
Text1024 = Annotated[str, Field(max_length=1024), BeforeValidator(_clean)]
Word = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=INT64_MAX, strict=True)]
Positive = Annotated[int, Field(ge=1, le=INT64_MAX, strict=True)]
Step = Annotated[int, Field(ge=0, le=10**12, strict=True)]
Rank = Annotated[int, Field(ge=0, lt=MOST_RANKS, strict=True)]
Attempt = Annotated[int, Field(ge=0, le=1000, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PropertyName = Annotated[str, Field(pattern=r"^[a-z][A-Za-z0-9]{0,63}$")]
ConfigName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Scalar = bool | Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX, strict=True)] | Finite | Text64 | None
Version = Annotated[str, Field(pattern=r"^1\.[0-9]{1,6}$")]
Time = Annotated[AwareDatetime, AfterValidator(_to_utc)]


class Document(BaseModel):
    """An immutable document in camelCase. Unknown members come from a newer minor version and are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
