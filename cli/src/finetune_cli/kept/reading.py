"""Reads one kept file of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stored import read_stored

from finetune_cli.cluster.kubectl import Kubectl
from finetune_cli.errors import UsageError
from finetune_cli.kept.cluster import existing_claims, reader_output
from finetune_cli.kept.frame import FrameError, Kept, read_frame
from finetune_cli.kept.places import find_place, places, why_missing
from finetune_cli.kept.reader_pod import reader_pod

DEFAULT_SECONDS = 180
"""Time in which a pod must start, read and end. It may have to pull the trainer image first."""


def read_kept(
    kubectl: Kubectl,
    job: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    image: str | None,
    seconds: int,
    pods: Sequence[Mapping[str, Any]] = (),
) -> Kept:
    """Return what `python -m finetune_trainer kept FOLDER ARGUMENTS` prints for the job's most complete claim.

    `pods` are those of the job's stages. Raises UsageError, which says what is missing, ClusterError, and
    TimeoutError after `seconds`.
    """
    spec = spec_of(job)
    claims = existing_claims(kubectl, [place.claim for place in places(job, spec)])
    place = find_place(job, spec, claims)
    if place is None:
        raise UsageError(why_missing(job, spec))
    chosen = image or image_of(job, pods)
    if chosen is None:
        raise UsageError("the status must name the trainer's image, found none; give one with --image")
    node = node_of(pods, place.claim)
    pod = reader_pod(job, spec, place, chosen, arguments, seconds=seconds, node=node)
    output = reader_output(kubectl, pod, seconds)
    try:
        return read_frame(output)
    except FrameError as error:
        raise UsageError(
            f"the pod that reads {place.what} must print the whole file, but {error}; try again, or give another trainer "
            "image with --image: one before contract 1.9 cannot read"
        ) from error


def spec_of(job: Mapping[str, Any]) -> FineTuneJobSpec:
    """The job's spec. Raises UsageError for one that a later version wrote."""
    stored = read_stored(job["spec"])
    if stored.spec is None:
        raise UsageError("this version must be able to read the job's spec; use that of the installed CRD")
    return stored.spec


def image_of(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str | None:
    """The trainer's image: of the job's newest pod, or what the status recorded after PREPARE."""
    newest = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    for pod in newest:
        for container in pod["spec"]["containers"]:
            if container["name"] == "trainer":
                return str(container["image"])
    found = ((job.get("status") or {}).get("trainer") or {}).get("image")
    return None if found is None else str(found)


def node_of(pods: Sequence[Mapping[str, Any]], claim: str) -> str:
    """The node of a running pod that has the claim mounted; empty if there is none."""
    for pod in pods:
        volumes = pod["spec"].get("volumes") or ()
        mounted = any((each.get("persistentVolumeClaim") or {}).get("claimName") == claim for each in volumes)
        if mounted and (pod.get("status") or {}).get("phase") == "Running":
            return str(pod["spec"].get("nodeName", ""))
    return ""
