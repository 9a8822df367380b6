"""Kueue, built from its module (scripts/tools/build_kueue.sh), in a dev cluster.

It manages Jobs of batch/v1, and JobSets where they are installed. Its aggregated API is off, because it needs a front proxy.
"""

from __future__ import annotations

from devcluster.layout import BIN
from devcluster.webhook_controllers import WebhookController

API = "kueue.x-k8s.io/v1beta2"
KUEUE = WebhookController(
    name="kueue",
    binary=BIN / "kueue",
    manifests=BIN / "kueue.yaml",
    build="scripts/tools/build_kueue.sh",
    groups=frozenset({"kueue.x-k8s.io", "batch", "jobset.x-k8s.io"}),
    config={
        "integrations": {"frameworks": ["batch/job", "jobset.x-k8s.io/jobset"]},
        "featureGates": {"VisibilityOnDemand": False},
    },
    probe={"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "probe"}},
    left_out=frozenset({"APIService"}),
)
