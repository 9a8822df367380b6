"""The base of all parts of a result: typed values that are written as they were read."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """Immutable, camelCase in JSON; unknown members are ignored, as the contract asks of every reader."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, ser_json_inf_nan="constants"
    )

    def document(self) -> dict[str, Any]:
        """Return the part as JSON, without the members that were not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @classmethod
    def read(cls, document: dict[str, Any] | None) -> Self | None:
        """Read what `document` returned, for example from a marker.

        None for None and for a document that lacks required members: its step then counts as not finished.
        """
        if document is None:
            return None
        try:
            return cls.model_validate(document)
        except ValidationError:
            return None


def _finite(value: float | None) -> float | None:
    """A number that is not finite is not known, and no JSON can carry it."""
    return value if value is None or math.isfinite(value) else None


Known = Annotated[float | None, AfterValidator(_finite)]
"""A number that is not known if it is not finite."""
