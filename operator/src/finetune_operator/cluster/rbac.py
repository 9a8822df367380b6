"""What the operator may do, as (API group, resource, verbs): the chart's roles hold exactly this."""

from __future__ import annotations

Rule = tuple[str, str, tuple[str, ...]]

WATCHED_RULES: tuple[Rule, ...] = (
    ("finetune.dev", "finetunejobs", ("get", "list", "watch")),
    ("finetune.dev", "finetunejobs/status", ("patch",)),
    # OwnerReferencesPermissionEnforcement asks for it where children set blockOwnerDeletion.
    ("finetune.dev", "finetunejobs/finalizers", ("update",)),
    ("batch", "jobs", ("get", "list", "watch", "create", "patch", "delete")),
    ("", "pods", ("list", "watch", "delete")),
    ("", "persistentvolumeclaims", ("get", "list", "watch", "create", "patch", "delete")),
    ("", "events", ("create",)),
)
"""In the watched namespace, or in all of them."""

CLUSTER_RULES: tuple[Rule, ...] = (
    ("", "nodes", ("list", "watch")),
    ("", "persistentvolumes", ("get",)),
    ("storage.k8s.io", "storageclasses", ("list",)),
)
"""In the whole cluster, whatever namespace is watched: these objects lie in none."""

LEASE_RULES: tuple[Rule, ...] = (("coordination.k8s.io", "leases", ("get", "create", "update")),)
"""In the operator's own namespace."""
