"""Decides in which claim the report and the logs of a job are, and where else they may be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import workspace_claim_name
from finetune_operator.contract.report_task import report_suffix


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
    destinations = [
        (
            claim.claim_name,
            str(PurePosixPath(claim.folder(name))),
            f"the destination {destination}" if destination else "the destination",
        )
        for destination, claim in spec.output.claims.items()
    ]
    if has_own_place(job, spec):
        for claim_name, folder, what in destinations:
            yield Place(claim_name, folder + report_suffix(uid), f"the report beside {what}")
    for claim_name, folder, what in destinations:
        yield Place(claim_name, folder, what)


def has_own_place(job: Mapping[str, Any], spec: FineTuneJobSpec) -> bool:
    """True if the report was copied to a place of its own, which knows the end of the job.

    A failed job has a report nowhere else. A job that succeeded has one with its artifacts, so that counts if the copy
    failed.
    """
    status = job.get("status") or {}
    copied = find_condition(status, Condition.REPORT_PUBLISHED).get("status")
    failed = find_condition(status, Condition.SUCCEEDED).get("status") == Truth.FALSE
    return spec.output.reports == "Destinations" and (
        copied == Truth.TRUE or (failed and copied == Truth.FALSE)
    )


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
    if has_own_place(job, spec):
        suffix = report_suffix(job["metadata"]["uid"])
        return (
            f"{text}. A copy is beside each destination of the job, in a place whose name ends with {suffix}"
        )
    uris = published_uris(job)
    return f"{text}. They are published in the folder `report` of {', '.join(uris)}" if uris else text
