"""Decides in which claim the report and the logs of a job are, and where else they may be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import workspace_claim_name


@dataclass(frozen=True)
class Place:
    """A folder in a claim."""

    claim: str
    folder: str
    what: str
    """For people."""


def places(job: Mapping[str, Any], spec: FineTuneJobSpec) -> Iterator[Place]:
    """Yield the folders that may hold report and logs, the most complete one first."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    existing = spec.workspace.existing_claim
    yield Place(existing or workspace_claim_name(name), uid if existing else "", "the workspace")
    for destination, claim in spec.output.claims.items():
        what = f"the destination {destination}" if destination else "the destination"
        yield Place(claim.claim_name, str(PurePosixPath(claim.folder(name))), what)


def find_place(job: Mapping[str, Any], spec: FineTuneJobSpec, claims: Collection[str]) -> Place | None:
    """The first folder whose claim exists; None if none does."""
    return next((place for place in places(job, spec) if place.claim in claims), None)


def published_uris(job: Mapping[str, Any]) -> list[str]:
    """The places outside of claims to which MERGE has copied the report together with the artifacts."""
    publications = (job.get("status") or {}).get("publications") or ()
    return [entry["uri"] for entry in publications if not str(entry.get("uri", "pvc:")).startswith("pvc:")]


def why_missing(job: Mapping[str, Any], spec: FineTuneJobSpec) -> str:
    """What must be, what was found and the remedy, if no claim of the job exists any more."""
    tried = ", ".join(place.claim for place in places(job, spec))
    text = (
        f"a claim with the report and the logs of {job['metadata']['name']} must exist, found none of {tried}; "
        "lifecycle.keepWorkspace: Always keeps the workspace of later jobs"
    )
    uris = published_uris(job)
    return f"{text}. They are published in the folder `report` of {', '.join(uris)}" if uris else text
