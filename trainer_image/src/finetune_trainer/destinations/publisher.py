"""What every destination can do, and what they share: the port between publishing and its six kinds of places."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from finetune_trainer.destinations.local_artifact import LocalArtifact

OnBytes = Callable[[int], None]
"""Called with the bytes that are at the destination so far, and again during an outage."""


class Publisher(Protocol):
    """One destination. Each method raises StageError with a reason that starts with `Destination`."""

    def probe(self) -> None:
        """Write a small object, read it back and delete it, and refuse a place that another job has taken."""

    def published(self) -> dict[str, Any] | None:
        """Return the manifest if the destination proves that this spec is published there whole; otherwise None."""

    def publish(self, artifact: LocalArtifact, on_bytes: OnBytes) -> str | None:
        """Make `artifact` visible there, whole or not at all. Returns the place's own digest or version, if it has one.

        It may be called again after a kill at any point, and continues then. A place that holds the same files already
        stays as it is.
        """


def taken(name: str, found: str) -> StageError:
    """Make the error for a destination that holds other content."""
    return StageError(
        Reason.DESTINATION_UNWRITABLE,
        f"output.destinations[{name}] must be empty or hold this job's own artifacts, found {found}; choose another place, "
        "empty it, or set overwrite for this destination",
    )


def changed(name: str, file: str) -> StageError:
    """Make the error for a file that arrived with other bytes than were sent."""
    return StageError(
        Reason.DESTINATION_UNAVAILABLE,
        f"output.destinations[{name}] must return the bytes that were written, found others in {file}; check the store",
    )


def parse_manifest(text: bytes) -> dict[str, Any]:
    """Read a manifest that somebody may have changed; without a spec's hash if it is no such document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
