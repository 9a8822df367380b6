"""Reads documents whose members are all optional and checked: stack profiles and calibrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
_LARGEST = 1 << 50
_LONGEST = 128


class ProfileError(ValueError):
    """A stack profile or calibration that cannot be used. The message names each bad member."""


def parse_record(what: str, kind: type[Record], document: Any) -> Record:
    """Read a dataclass from a JSON object with camelCase members; a member that is missing has its default.

    Raises ProfileError naming every member that is unknown or has a value that it must not have.
    """
    if not isinstance(document, Mapping):
        raise ProfileError(f"{what} must be an object, found {type(document).__name__}")
    known: dict[str, Field[Any]] = {member(field.name): field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    hints = get_type_hints(kind)
    faults, values = [], {}
    for name, value in document.items():
        field = known.get(name)
        if field is None:
            faults.append(f"{name} is unknown, must be one of {', '.join(known)}")
            continue
        try:
            values[field.name] = _value(hints[field.name], value)
        except ValueError as error:
            faults.append(f"{name} must be {error}, found {value!r:.80}")
    if faults:
        raise ProfileError(f"{what}: {'; '.join(faults)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ProfileError(f"{what}: {error}") from error


def member(name: str) -> str:
    """Return a field's name as JSON has it: loss_chunk_tokens is lossChunkTokens."""
    first, *others = name.split("_")
    return first + "".join(part.capitalize() if not part[0].isdigit() else part for part in others)


def _value(kind: Any, value: Any) -> Any:
    """Return a value of a field's type. Raises ValueError that says what it must be."""
    if get_origin(kind) is Literal:
        return _checked(
            value, value in get_args(kind) if isinstance(value, str) else False, ", ".join(get_args(kind))
        )
    if get_origin(kind) is tuple:
        return _version(value)
    if type(None) in get_args(kind):
        return None if value is None else _value(get_args(kind)[0], value)
    number = not isinstance(value, bool) and isinstance(value, int | float)
    good, wanted = {
        bool: (isinstance(value, bool), "true or false"),
        int: (number and isinstance(value, int) and 0 <= value < _LARGEST, "a whole number from 0"),
        float: (number and -1 < value < _LARGEST, "a number above -1"),
        str: (isinstance(value, str) and 0 < len(value) <= _LONGEST, f"a text of 1 to {_LONGEST} characters"),
    }[kind]
    return _checked(float(value) if kind is float and good else value, good, wanted)


def _checked(value: Any, good: bool, wanted: str) -> Any:  # noqa: FBT001 -- the result of a check
    if not good:
        raise ValueError(wanted)
    return value


def _version(value: Any) -> tuple[int, int]:
    parts: Sequence[Any] = (
        value.split(".") if isinstance(value, str) else value if isinstance(value, list) else ()
    )
    if len(parts) == 2 and all(str(part).isdigit() for part in parts):
        return int(parts[0]), int(parts[1])
    raise ValueError('a version such as "12.8"')
