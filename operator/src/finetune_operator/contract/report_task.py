"""The run spec's member `report`: the end of a job as the operator knows it, and the places for the report on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.mounts import MountPaths
from finetune_operator.contract.run_spec import destination_place

MAXIMUM_ATTEMPTS = 20
"""The newest attempts. All of them could exceed the size of an annotation."""
_LONGEST_MESSAGE = 1024
_LONGEST_TAG = 128
_NAMES = {
    "Directory": ("path", "uri"),
    "ObjectStore": ("uri",),
    "HuggingFace": ("revision",),
    "Oci": ("reference",),
}
"""The members that name a place, by its kind."""
_ATTEMPT = ("stage", "attempt", "startTime", "completionTime", "outcome", "reason", "message")


def report_task(
    spec: FineTuneJobSpec,
    paths: MountPaths,
    uid: str,
    status: Mapping[str, Any],
    *,
    succeeded: bool,
    copies: bool = True,
) -> dict[str, Any]:
    """Build the member from the status of a job that has ended. Without `copies`, only trackers are told."""
    failure = status.get("failure") or {}
    return {
        "outcome": "Succeeded" if succeeded else "Failed",
        **({"failure": {**_cut(failure, ("stage", "reason", "message"))}} if failure else {}),
        "attempts": [_cut(entry, _ATTEMPT) for entry in (status.get("attempts") or ())[-MAXIMUM_ATTEMPTS:]],
        "destinations": report_places(spec, paths, uid) if copies else [],
    }


def report_places(spec: FineTuneJobSpec, paths: MountPaths, uid: str) -> list[dict[str, Any]]:
    """The places of the report: one beside each destination of the artifacts, with a suffix of the job's own.

    So a report is never in the way of artifacts, also of those of a later job, and needs no other credentials.
    """
    suffix = report_suffix(uid)
    if spec.output.destinations is None:
        only = {"name": "destination", "kind": "Directory", "path": paths.output, "uri": paths.output_uri}
        return [_beside(only, suffix)]
    return [_beside(destination_place(entry, paths), suffix) for entry in spec.output.destinations]


def report_suffix(uid: str) -> str:
    """The end of the name of every place of the report on the job with this uid."""
    return f"-report-{uid[:8]}"


def _beside(place: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    found = {name: value for name, value in place.items() if name not in {"overwrite", "imageTag"}}
    for member in _NAMES[place["kind"]]:
        text = str(place[member]).rstrip("/")
        found[member] = (_tagged if member == "reference" else str.__add__)(text, suffix)
    return found


def _tagged(reference: str, suffix: str) -> str:
    repository, _, tag = reference.rpartition(":")
    return f"{repository}:{tag[: _LONGEST_TAG - len(suffix)]}{suffix}"


def _cut(entry: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The members that are known, with texts of a bounded length."""
    known = {name: entry[name] for name in names if entry.get(name) is not None}
    return {
        name: value[:_LONGEST_MESSAGE] if isinstance(value, str) else value for name, value in known.items()
    }
