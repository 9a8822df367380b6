"""Published artifacts and the destinations that hold them, within the bounds of the CRD's status schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from finetune_operator.contract.bounded import Digest, Document, Positive, Text64, Text128, Text512


class Artifact(Document):
    """One published folder."""

    kind: Literal["Adapter", "Merged", "BaseAsTrained"]
    uri: Text512
    digest: Digest
    bytes: Positive
    files: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
    base_digest: Digest | None = None
    """Of an adapter: the digest of the base as trained that belongs to it."""


def _distinct_kinds(artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """The status is a list-map by kind, so the API server rejects a status that repeats a kind."""
    if len({artifact.kind for artifact in artifacts}) != len(artifacts):
        raise ValueError("must have at most one artifact of each kind")
    return artifacts


class Publication(Document):
    """A destination that holds all artifacts. `digest` is its own name for them, such as a commit."""

    name: Text64
    uri: Text512
    digest: Text128 | None = None


def _distinct_destinations(publications: tuple[Publication, ...]) -> tuple[Publication, ...]:
    """The status is a list-map by name, so the API server rejects a status that repeats a name."""
    if len({each.name for each in publications}) != len(publications):
        raise ValueError("must have each destination at most once")
    return publications


class TrackerRecord(Document):
    """What one tracker has of the run. `run` is its id there, and `model` is name and version of the registered model."""

    kind: Literal["MLflow", "KubeflowModelRegistry"]
    recorded: bool
    run: Text128 | None = None
    model: Text512 | None = None
    message: Text512 | None = None


def _distinct_trackers(records: tuple[TrackerRecord, ...]) -> tuple[TrackerRecord, ...]:
    """The status is a list-map by kind, so the API server rejects a status that repeats a kind."""
    if len({each.kind for each in records}) != len(records):
        raise ValueError("must have each tracker at most once")
    return records


Artifacts = Annotated[
    tuple[Artifact, ...], Field(min_length=1, max_length=3), AfterValidator(_distinct_kinds)
]
Publications = Annotated[tuple[Publication, ...], Field(max_length=8), AfterValidator(_distinct_destinations)]
TrackerRecords = Annotated[tuple[TrackerRecord, ...], Field(max_length=2), AfterValidator(_distinct_trackers)]
