"""Builds the pod that prints a kept file: at the restricted Pod Security level, without network credentials or writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.api.pod_merge import NO_DEFAULTS, merge_pods
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import GROUP, KIND, VERSION, Stage

from finetune_cli.kept.places import Place

CONTAINER = "reader"
_MOUNT = "/kept"
_USER_ID = 65532
"""User and group of the trainer image, which wrote the files."""


def reader_pod(
    job: Mapping[str, Any],
    spec: FineTuneJobSpec,
    place: Place,
    image: str,
    arguments: Sequence[str],
    *,
    seconds: int,
    node: str = "",
) -> dict[str, Any]:
    """Build the pod. `arguments` follow the folder of `python -m finetune_trainer kept`.

    It ends after `seconds` at the latest, and it goes with the FineTuneJob if nobody deletes it. `node` has the claim
    mounted at the moment, and a volume may be mounted on one node only.
    """
    metadata = job["metadata"]
    pods = merge_pods(NO_DEFAULTS, spec, Stage.MERGE)
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    given = pods.security
    own = None if given.ids == "Assigned" else _USER_ID
    ids = {
        "runAsUser": given.run_as_user or own,
        "runAsGroup": given.run_as_group or own,
        "fsGroup": given.fs_group or own,
    }
    # The files are there already: changing their owner would touch every file of the volume.
    security |= {"fsGroupChangePolicy": "OnRootMismatch"} | {name: id_ for name, id_ in ids.items() if id_}
    if given.supplemental_groups:
        security["supplementalGroups"] = list(given.supplemental_groups)
    tolerations = [*pods.rules.tolerations, *spec.resources.tolerations]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": seconds,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": ["kept", f"{_MOUNT}/{place.folder}".rstrip("/"), *arguments],
                "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 -- nothing is written there
                "resources": {
                    "requests": {"cpu": "50m", "memory": "128Mi"},
                    "limits": {"cpu": "1", "memory": "256Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "privileged": False,
                    "readOnlyRootFilesystem": True,
                    "runAsNonRoot": True,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "volumeMounts": [{"name": "kept", "mountPath": _MOUNT, "readOnly": True}],
            }
        ],
        "volumes": [{"name": "kept", "persistentVolumeClaim": {"claimName": place.claim}}],
        # The volume may be bound to a node with GPUs.
        "tolerations": [
            {"key": spec.resources.gpu_resource_name, "operator": "Exists", "effect": "NoSchedule"},
            *(item.model_dump(by_alias=True, exclude_none=True) for item in dict.fromkeys(tolerations)),
        ],
    }
    if pods.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pods.image_pull_secrets]
    if pods.service_account_name:
        pod["serviceAccountName"] = pods.service_account_name
    if node:
        fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
        required = {"nodeSelectorTerms": [{"matchFields": fields}]}
        pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{metadata['name'][:50]}-reader-",
            "namespace": metadata["namespace"],
            # Without the label of the job: the operator must not take it for a stage.
            "labels": {
                **pods.labels,
                "app.kubernetes.io/name": "finetune-reader",
                "app.kubernetes.io/managed-by": "finetune-cli",
            },
            "ownerReferences": [
                {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": KIND,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": pod,
    }
