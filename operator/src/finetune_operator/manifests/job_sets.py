"""Wraps a Job into a JobSet, for clusters whose queues, quotas and placement know JobSets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.stages import JOB_SET, REPLICATED_JOB


def as_job_set(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JobSet that makes `job`, a batch/v1 Job, and nothing else.

    It has the Job's metadata, so owner, labels and queue are those of a Job. The Job inside has none of them: nobody but the
    JobSet controls it. A failure of the Job is that of the JobSet, because the operator decides about attempts. The pods meet
    through the workspace (ADR 0076), so no headless Service is made.
    """
    spec = dict(job["spec"])
    suspended = {"suspend": spec.pop("suspend")} if "suspend" in spec else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": JOB_SET,
        "metadata": job["metadata"],
        "spec": {
            **suspended,
            "network": {"enableDNSHostnames": False},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [{"name": REPLICATED_JOB, "replicas": 1, "template": {"spec": spec}}],
        },
    }
