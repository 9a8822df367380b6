"""Objects that a cluster needs in addition to those of Kubernetes: rights of two identities and StorageClasses."""

from __future__ import annotations

from enum import Enum
from typing import Any

from devcluster.api import ApiClient
from devcluster.certificates import KUBELET_CLIENT_USER, PROVISIONER_USER

PROVISIONER = "devcluster.finetune.dev/hostpath"
STORAGE_CLASS = "standard"


class Reach(Enum):
    """The nodes that can use a volume, according to its node affinity."""

    NODE = "node"
    ZONE = "zone"
    CLUSTER = "cluster"


# Volumes like those of clouds and network file systems, for pods on pretend nodes. All are folders of the only real
# node.
STORAGE_CLASSES = {STORAGE_CLASS: Reach.NODE, "zonal": Reach.ZONE, "shared": Reach.CLUSTER}

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


def _storage_class(name: str, reach: Reach) -> dict[str, Any]:
    """Return a class whose volumes bind on their first pod's node, unless every node can use them."""
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if name == STORAGE_CLASS else {}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": annotations},
        "provisioner": PROVISIONER,
        "volumeBindingMode": "Immediate" if reach is Reach.CLUSTER else "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }


def objects() -> list[tuple[str, dict[str, Any]]]:
    """Return pairs of collection path and object, in the order of their application."""
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "devcluster:provisioner"},
        "rules": [
            _rule("", ["persistentvolumes"], ["list", "watch", "create", "delete"]),
            _rule("", ["persistentvolumeclaims"], ["list", "watch"]),
            _rule("", ["nodes"], ["list"]),
        ],
    }
    roles, bindings = (f"/apis/{_RBAC}/v1/{kind}" for kind in ("clusterroles", "clusterrolebindings"))
    return [
        (bindings, _binding("devcluster:kubelet-client", "system:kubelet-api-admin", KUBELET_CLIENT_USER)),
        (roles, role),
        (bindings, _binding("devcluster:provisioner", "devcluster:provisioner", PROVISIONER_USER)),
        *[
            ("/apis/storage.k8s.io/v1/storageclasses", _storage_class(name, reach))
            for name, reach in STORAGE_CLASSES.items()
        ],
    ]


def apply_all(client: ApiClient) -> None:
    """Apply all objects as the administrator."""
    for collection, body in objects():
        client.apply(f"{collection}/{body['metadata']['name']}", body)
