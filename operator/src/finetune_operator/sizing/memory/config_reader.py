"""Reads members of a config.json with the defaults and the spellings of a model family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_operator.sizing.memory.family import Family

_LARGEST = 1 << 40
_LONGEST_VALUE = 80


class ShapeUnknownError(Exception):
    """The model's memory cannot be computed. The message names the requirement and the value found."""


class FamilyUnknownError(ShapeUnknownError):
    """No formula knows the model's family, its experts or a kind of its layers. The trainer does, so PREPARE can trace it."""


class ConfigReader:
    """A config, read with its family's defaults and spellings."""

    def __init__(self, config: Mapping[str, Any], family: Family) -> None:
        self._config = config
        self._family = family

    def value(self, name: str) -> Any:
        """Return the config's value, else the family's default, else None."""
        for spelling in (self._family.overrides.get(name), name, self._family.aliases.get(name)):
            if spelling is not None and self._config.get(spelling) is not None:
                return self._config[spelling]
        if name in self._config:
            return None
        return self._family.defaults.get(name)

    def number(self, name: str, otherwise: int | None = None) -> int:
        """Return a positive whole number."""
        value = self.value(name)
        if value is None:
            value = otherwise
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST:
            raise unexpected(name, "a positive whole number", value)
        return value

    def optional(self, name: str) -> int | None:
        """Return a positive whole number, or None if the config has none."""
        return None if self.value(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """Return a boolean, False if the config has none."""
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            raise unexpected(name, "true or false", value)
        return bool(value)

    def text(self, name: str, otherwise: str) -> str:
        """Return a text."""
        value = self.value(name)
        if value is None:
            return otherwise
        if not isinstance(value, str):
            raise unexpected(name, "a text", value)
        return value

    def real(self, name: str) -> float | None:
        """Return a number, None if the config has none."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            raise unexpected(name, "a number", value)
        return value

    def decided(self, rule: bool | str) -> bool:  # noqa: FBT001 -- a constant or the member that decides
        """Return a property that all models of a family have, or that the member `rule` decides."""
        return self.flag(rule) if isinstance(rule, str) else rule


def unexpected(name: str, wanted: str, found: Any) -> ShapeUnknownError:
    """Return the error about a member of a config.json."""
    return ShapeUnknownError(f"config.json's {name} must be {wanted}, found {found!r:.{_LONGEST_VALUE}}")
