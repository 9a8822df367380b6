"""The operator's permissions as (API group, resource, verbs). The chart's roles contain exactly these."""

from __future__ import annotations

Rule = tuple[str, str, tuple[str, ...]]

WATCHED_RULES: tuple[Rule, ...] = (
    ("finetune.dev", "finetunejobs", ("get", "list", "watch")),
    ("finetune.dev", "finetunejobs/status", ("patch",)),
    # The admission plugin OwnerReferencesPermissionEnforcement requires it, because children set blockOwnerDeletion.
    ("finetune.dev", "finetunejobs/finalizers", ("update",)),
    ("batch", "jobs", ("get", "list", "watch", "create", "patch", "delete")),
    ("", "pods", ("list", "watch", "delete")),
    ("", "persistentvolumeclaims", ("get", "list", "watch", "create", "patch", "delete")),
    ("", "events", ("create", "list", "patch")),
)
"""In each watched namespace, or in all namespaces."""

JOB_SET_RULES: tuple[Rule, ...] = (
    ("jobset.x-k8s.io", "jobsets", ("get", "list", "watch", "create", "patch", "delete")),
)
"""In each watched namespace, or in all namespaces, if JobSets are used."""

CLUSTER_RULES: tuple[Rule, ...] = (
    ("", "nodes", ("list", "watch")),
    ("", "persistentvolumes", ("get",)),
    ("storage.k8s.io", "storageclasses", ("list",)),
)
"""In the whole cluster, because these objects belong to no namespace."""

LEASE_RULES: tuple[Rule, ...] = (("coordination.k8s.io", "leases", ("get", "create", "update")),)
"""In the operator's own namespace."""
