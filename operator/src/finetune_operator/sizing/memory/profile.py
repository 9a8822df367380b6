"""Reads stack profiles and calibrations from the chart's values: camelCase members, every one optional and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")
_LARGEST = 1 << 50
_LONGEST_INPUT = 80

DOCUMENT = ConfigDict(alias_generator=to_camel, extra="forbid", allow_inf_nan=False)
"""Configuration of the dataclasses that parse_record reads, as their `__pydantic_config__`."""


class ProfileError(ValueError):
    """A stack profile or calibration that cannot be used. The message names each bad member."""


def _version(value: Any) -> tuple[int, int]:
    """Read "12.8" or [12, 8]. Raises ValueError for anything else."""
    parts = value.split(".") if isinstance(value, str) else value if isinstance(value, list) else ()
    if len(parts) == 2 and all(str(part).isdecimal() for part in parts):
        return int(parts[0]), int(parts[1])
    raise ValueError('must be a version such as "12.8"')


Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, lt=_LARGEST)]
"""A number of things or of bytes."""
Number = Annotated[float, Field(strict=True, gt=-1, lt=_LARGEST)]
"""A fraction or a factor."""
Text = Annotated[str, Field(strict=True, min_length=1, max_length=128)]
VersionPair = Annotated[tuple[int, int], BeforeValidator(_version)]
"""Major and minor, written as "12.8"."""


def parse_record(what: str, kind: type[Record], document: Any) -> Record:
    """Read the dataclass `kind` from a mapping with camelCase members; a missing member has its default.

    `what` names the document in messages. Raises ProfileError naming every member that is unknown or has an invalid
    value.
    """
    if not isinstance(document, Mapping):
        raise ProfileError(f"{what} must be an object, found {type(document).__name__}")
    try:
        return TypeAdapter(kind).validate_python(dict(document))
    except ValidationError as error:
        known = ", ".join(to_camel(field.name) for field in fields(kind))
        faults = [
            _fault(detail["type"], detail["loc"], detail["msg"], detail["input"], known)
            for detail in error.errors(include_url=False, include_context=False)
        ]
        raise ProfileError(f"{what}: {'; '.join(faults)}") from error


def _fault(kind: str, location: tuple[int | str, ...], message: str, value: Any, known: str) -> str:
    """Say of one member what it must be and what was found."""
    name = str(location[0]) if location else ""
    if kind in {"unexpected_keyword_argument", "invalid_key", "extra_forbidden"}:
        return f"{name} is unknown, must be one of {known}"
    wanted = re.sub(r"^(Input|String) should ", "must ", message.removeprefix("Value error, "))
    if not name:
        return wanted
    return f"{name} {wanted}, found {value!r:.{_LONGEST_INPUT}}"
