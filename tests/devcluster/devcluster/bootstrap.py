"""The objects that a cluster needs beyond those that Kubernetes makes itself: rights of two identities and the StorageClass."""

from __future__ import annotations

from typing import Any

from devcluster.api import ApiClient
from devcluster.certificates import KUBELET_CLIENT_USER, PROVISIONER_USER

PROVISIONER = "devcluster.finetune.dev/hostpath"
STORAGE_CLASS = "standard"

_RBAC = "rbac.authorization.k8s.io"


def _rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, list[str]]:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _binding(name: str, role: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
    }


def objects() -> list[tuple[str, dict[str, Any]]]:
    """Pairs of collection path and object, in the order they are applied."""
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "devcluster:provisioner"},
        "rules": [
            _rule("", ["persistentvolumes"], ["list", "watch", "create", "delete"]),
            _rule("", ["persistentvolumeclaims"], ["list", "watch"]),
        ],
    }
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }
    roles, bindings = (f"/apis/{_RBAC}/v1/{kind}" for kind in ("clusterroles", "clusterrolebindings"))
    return [
        (bindings, _binding("devcluster:kubelet-client", "system:kubelet-api-admin", KUBELET_CLIENT_USER)),
        (roles, role),
        (bindings, _binding("devcluster:provisioner", "devcluster:provisioner", PROVISIONER_USER)),
        ("/apis/storage.k8s.io/v1/storageclasses", storage_class),
    ]


def apply_all(client: ApiClient) -> None:
    """Apply all objects as the administrator."""
    for collection, body in objects():
        client.apply(f"{collection}/{body['metadata']['name']}", body)
