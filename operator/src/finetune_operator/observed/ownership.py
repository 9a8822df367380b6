"""Recognizes the children of FineTuneJobs by owners and names, because anybody may change labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_operator.api.stages import (
    ATTEMPT_LABEL,
    CONTROLLER_LABEL,
    JOB_LABEL,
    JOB_SET_LABEL,
    KIND,
    RUN_ANNOTATION,
    STAGE_LABEL,
    Stage,
    job_of_set,
    parse_child_name,
)

_RUN_OF = re.compile(r'"job":\{"name":"[^"]*","namespace":"[^"]*","uid":"([^"]+)"\}')
"""The FineTuneJob in a run spec, as `manifests.jobs` writes it. Quotes inside of texts are escaped, so no text matches."""


def controller_uid(metadata: Mapping[str, Any], kind: str) -> str | None:
    """uid of the controller of an object, if it is of this kind; None otherwise."""
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == kind:
            return str(reference["uid"])
    return None


def former_job_uid(metadata: Mapping[str, Any]) -> str | None:
    """uid of the Job that made a pod which nobody owns any more; None for any other pod.

    If somebody deletes a Job without its pods, they run on. So they are still in the way of the next attempt.
    """
    labels = metadata.get("labels") or {}
    if metadata.get("ownerReferences") or JOB_LABEL not in labels:
        return None
    uid = labels.get(JOB_SET_LABEL, labels.get(CONTROLLER_LABEL))
    return None if uid is None else str(uid)


def job_set_uid(metadata: Mapping[str, Any]) -> str | None:
    """uid of the JobSet that made the Job which controls a pod; None for any other pod.

    Only the name of the Job says that a JobSet made it, so the label of another pod counts for nothing.
    """
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == "Job":
            made = reference.get("name", "").endswith(job_of_set(""))
            uid = (metadata.get("labels") or {}).get(JOB_SET_LABEL)
            return str(uid) if made and uid else None
    return None


def run_uid(metadata: Mapping[str, Any]) -> str:
    """uid of the FineTuneJob whose run spec a pod has; empty for a pod that the operator's Jobs did not make."""
    found = _RUN_OF.search((metadata.get("annotations") or {}).get(RUN_ANNOTATION, ""))
    return "" if found is None else found[1]


def key_of(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Namespace and name of the FineTuneJob that a child belongs to; None if neither its owner nor its label names one.

    The owner of a Job or a claim is the FineTuneJob, and the owner of a pod is a Job of `child_name`. The label counts
    only without such an owner, because anybody may change it.
    """
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get(JOB_LABEL)
    owner: Mapping[str, Any] = next(
        (each for each in metadata.get("ownerReferences") or () if each.get("controller")), {}
    )
    if owner.get("kind") == KIND:
        name = owner.get("name", name)
    elif owner.get("kind") == "Job" and (named := parse_child_name(owner.get("name", ""))) is not None:
        name = named[0]
    return None if name is None else (metadata["namespace"], name)


def attempt_of(metadata: Mapping[str, Any]) -> tuple[Stage, int] | None:
    """Stage and attempt of a Job, from its name or else from its labels; None if neither says them."""
    named = parse_child_name(metadata["name"])
    if named is not None:
        return named[1:]
    labels = metadata.get("labels") or {}
    try:
        return Stage(labels.get(STAGE_LABEL, "").capitalize()), int(labels.get(ATTEMPT_LABEL, ""))
    except ValueError:
        return None


def is_watched(metadata: Mapping[str, Any]) -> bool:
    """True if an object has the label that the watches select."""
    return JOB_LABEL in (metadata.get("labels") or {})
