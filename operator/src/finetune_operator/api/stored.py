"""Reads a stored spec whose schema may be newer or older than the one of this version.

An upgrade or a rollback changes the CRD and the operator at different moments, and two replicas may differ meanwhile. A
field that this version does not know is left out and named. A value that only breaks a bound of this version is kept,
because an older version accepted it. A value that this version cannot read makes the whole spec unreadable: nobody may
guess it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from finetune_operator.api.sources import SpecValue
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.errors import InvalidSpecError

REMEMBERED = 512
"""Specs that are kept as values: more than change within minutes, in a few megabytes."""
_LARGEST_REMEMBERED = 32_768
"""Length of the largest spec that is kept, as JSON. The CRD allows 2 MB, and 512 of these would fill the operator's memory."""
_MAXIMUM_PATHS = 8
"""Paths that a message names."""


@dataclass(frozen=True)
class StoredSpec:
    """A stored spec as this version reads it."""

    spec: FineTuneJobSpec | None
    """None if a value cannot be read."""
    ignored: tuple[str, ...] = ()
    """The fields that this version does not know, as paths such as `spec.training.packing`."""
    violation: str = ""
    """The bounds that values break, which `spec` has nevertheless; empty if it breaks none."""
    unreadable: tuple[str, ...] = ()
    """What cannot be read: the field, what it must be, and what was found."""

    @cached_property
    def hash(self) -> str:
        """`api.spec.spec_hash`; empty if the spec cannot be read."""
        return "" if self.spec is None else spec_hash(self.spec)


def read_stored(spec: Mapping[str, Any]) -> StoredSpec:
    """Read the spec of an object that an API server has stored. It raises nothing.

    Equal specs give the same value, unless they are huge: every decision reads the spec, and reading it anew takes half of
    its time.
    """
    text = json.dumps(spec)
    return _remembered(text) if len(text) <= _LARGEST_REMEMBERED else _read(text)


@lru_cache(maxsize=REMEMBERED)
def _remembered(text: str) -> StoredSpec:
    return _read(text)


def _read(text: str) -> StoredSpec:
    spec = json.loads(text)
    try:
        return StoredSpec(FineTuneJobSpec.parse(spec))
    except InvalidSpecError:
        pass
    reader = _Reader()
    known = reader.known(FineTuneJobSpec, spec, "spec")
    ignored = tuple(reader.ignored)
    try:
        return StoredSpec(FineTuneJobSpec.parse(known), ignored)
    except InvalidSpecError as error:
        value = reader.read(FineTuneJobSpec, known, "spec")
        if reader.unreadable:
            return StoredSpec(None, ignored, unreadable=tuple(reader.unreadable))
        return StoredSpec(value, ignored, violation=str(error))


def list_paths(paths: tuple[str, ...]) -> str:
    """The first of `paths` as text, with the number of the others."""
    more = len(paths) - _MAXIMUM_PATHS
    return ", ".join(paths[:_MAXIMUM_PATHS]) + (f" and {more} more" if more > 0 else "")


@dataclass
class _Reader:
    """Collects what the reading of one spec finds."""

    ignored: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def known(self, kind: Any, raw: Any, path: str) -> Any:
        """Return `raw` without the members that its type does not have, at any depth."""
        kind = _plain(kind)
        if isinstance(raw, Mapping):
            if _is_model(kind):
                return self._known_members(kind, raw, path)
            if get_origin(kind) is dict:
                return {
                    key: self.known(get_args(kind)[1], item, f"{path}.{key}") for key, item in raw.items()
                }
        if isinstance(raw, list) and get_origin(kind) is tuple:
            item_kind = get_args(kind)[0]
            return [self.known(item_kind, item, f"{path}[{index}]") for index, item in enumerate(raw)]
        return raw

    def _known_members(self, kind: type[SpecValue], raw: Mapping[str, Any], path: str) -> dict[str, Any]:
        fields = {info.alias or name: info for name, info in kind.model_fields.items()}
        found = {}
        for name, item in raw.items():
            if name in fields:
                found[name] = self.known(fields[name].annotation, item, f"{path}.{name}")
            else:
                self.ignored.append(f"{path}.{name}")
        return found

    def read(self, kind: Any, raw: Any, path: str) -> Any:
        """Return the value of `raw`, without any check of bounds. Records what has another type than `kind`."""
        kind = _plain(kind)
        origin = get_origin(kind)
        if origin in {Union, types.UnionType}:
            return self._read_option(get_args(kind), raw, path)
        if origin in {tuple, dict}:
            return self._read_container(kind, raw, path)
        if _is_model(kind):
            return self._read_model(kind, raw, path)
        return self._read_scalar(kind, raw, path)

    def _read_container(self, kind: Any, raw: Any, path: str) -> Any:
        item_kind = get_args(kind)[0 if get_origin(kind) is tuple else 1]
        if get_origin(kind) is tuple and isinstance(raw, list):
            return tuple(self.read(item_kind, item, f"{path}[{index}]") for index, item in enumerate(raw))
        if get_origin(kind) is dict and isinstance(raw, Mapping):
            return {key: self.read(item_kind, item, f"{path}.{key}") for key, item in raw.items()}
        return self._fail(path, "a list" if get_origin(kind) is tuple else "an object", raw)

    def _read_model(self, kind: type[SpecValue], raw: Any, path: str) -> Any:
        if not isinstance(raw, Mapping):
            return self._fail(path, "an object", raw)
        try:
            return kind.model_validate(raw)
        except ValidationError:
            pass
        values = {}
        for name, info in kind.model_fields.items():
            alias = info.alias or name
            if raw.get(alias) is not None:
                values[name] = self.read(info.annotation, raw[alias], f"{path}.{alias}")
            elif info.is_required():
                self._fail(f"{path}.{alias}", "given", None)
        return kind.model_construct(**values)

    def _read_option(self, options: tuple[Any, ...], raw: Any, path: str) -> Any:
        """Read the first of `options` that has the type of `raw`."""
        if raw is None and type(None) in options:
            return None
        found: list[str] = []
        for option in options:
            if option is not type(None):
                attempt = _Reader()
                value = attempt.read(option, raw, path)
                if not attempt.unreadable:
                    return value
                found = found or attempt.unreadable
        self.unreadable += found
        return None

    def _read_scalar(self, kind: Any, raw: Any, path: str) -> Any:
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            known = isinstance(raw, (str, int)) and raw in choices
            return raw if known else self._fail(path, f"one of {', '.join(map(str, choices))}", raw)
        number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
        if kind is str and (isinstance(raw, str) or number):
            return str(raw)
        if kind is bool and isinstance(raw, bool):
            return raw
        if (kind is float and number) or (kind is int and number and raw == int(raw)):
            return kind(raw)
        return self._fail(path, {str: "text", bool: "true or false"}.get(kind, "a number"), raw)

    def _fail(self, path: str, expected: str, raw: Any) -> None:
        # The value may be a secret or huge, so only its type is said unless it is a short word.
        shown = raw if isinstance(raw, str) and raw.isalnum() and len(raw) <= 64 else _type_name(raw)
        self.unreadable.append(f"{path} must be {expected}, found {shown}")


def _plain(kind: Any) -> Any:
    """`kind` without its metadata, and without None if only one other type is left."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in {Union, types.UnionType}:
        options = [option for option in get_args(kind) if option is not type(None)]
        return _plain(options[0]) if len(options) == 1 else kind
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, SpecValue)


def _type_name(raw: Any) -> str:
    names = {type(None): "nothing", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(raw), "a list" if isinstance(raw, list) else "an object")
