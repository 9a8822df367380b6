"""JobSet, built from its module (scripts/tools/build_job_set.sh), in a dev cluster."""

from __future__ import annotations

from devcluster.layout import BIN
from devcluster.webhook_controllers import WebhookController

JOB_SET = WebhookController(
    name="jobset",
    binary=BIN / "jobset",
    manifests=BIN / "jobset.yaml",
    build="scripts/tools/build_job_set.sh",
    groups=frozenset({"jobset.x-k8s.io"}),
    config={},
    probe={
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "probe", "namespace": "jobset-system"},
        "spec": {"replicatedJobs": []},
    },
)
