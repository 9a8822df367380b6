"""Dynamic provisioner of hostPath volumes on the only node, for the StorageClasses of `bootstrap`.

It is level-triggered: after any event on claims or volumes it reads both lists again. `plan` returns the actions and
`Provisioner.act` performs them.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.api import ApiClient
from devcluster.bootstrap import PROVISIONER, STORAGE_CLASSES, Reach
from devcluster.errors import ApiError
from devcluster.layout import INSIDE, NODE_NAME

VOLUMES = INSIDE / "volumes"

_CLAIMS = "/api/v1/persistentvolumeclaims"
_VOLUMES = "/api/v1/persistentvolumes"
_NODES = "/api/v1/nodes"
_HOSTNAME = "kubernetes.io/hostname"
_ZONE = "topology.kubernetes.io/zone"
_WATCH_SECONDS = 300
_RETRY_SECONDS = 1.0
_SELECTED_NODE = "volume.kubernetes.io/selected-node"
_CLAIM_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


@dataclass(frozen=True)
class Create:
    """Create the folder of `volume` (a PersistentVolume) and the object."""

    volume: dict[str, Any]


@dataclass(frozen=True)
class Delete:
    """Remove the folder of the volume `name`, then the object if it still has the UID `uid`."""

    name: str
    uid: str


def _volume(claim: dict[str, Any], zones: Mapping[str, str]) -> dict[str, Any]:
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{metadata['uid']}"
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    reference |= {key: metadata[key] for key in ("namespace", "name", "uid")}
    volume: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {_PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec["storageClassName"],
            "claimRef": reference,
            "hostPath": {"path": str(VOLUMES / name), "type": "Directory"},
        },
    }
    where = _topology(claim, zones)
    if where is not None:
        term = {"matchExpressions": [{"key": where[0], "operator": "In", "values": [where[1]]}]}
        volume["spec"]["nodeAffinity"] = {"required": {"nodeSelectorTerms": [term]}}
    return volume


def _topology(claim: dict[str, Any], zones: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the label of the nodes that can use the claim's volume, or None if all nodes can."""
    if STORAGE_CLASSES[claim["spec"]["storageClassName"]] is Reach.ZONE:
        return _ZONE, zones[claim["metadata"]["annotations"][_SELECTED_NODE]]
    if STORAGE_CLASSES[claim["spec"]["storageClassName"]] is Reach.NODE:
        return _HOSTNAME, NODE_NAME
    return None


def _is_waiting(claim: dict[str, Any], zones: Mapping[str, str]) -> bool:
    """Return True if the claim needs a volume now: its class needs no node, or the scheduler chose a suitable one."""
    metadata, spec = claim["metadata"], claim["spec"]
    annotations = metadata.get("annotations", {})
    reach = STORAGE_CLASSES.get(spec.get("storageClassName", ""))
    node = annotations.get(_SELECTED_NODE)
    return (
        annotations.get(_CLAIM_PROVISIONER) == PROVISIONER
        and (
            reach is Reach.CLUSTER
            or (reach is Reach.ZONE and node in zones)
            or (reach is Reach.NODE and node == NODE_NAME)
        )
        and spec.get("volumeMode", "Filesystem") == "Filesystem"
        and not spec.get("volumeName")
        and "deletionTimestamp" not in metadata
    )


def plan(
    claims: list[dict[str, Any]], volumes: list[dict[str, Any]], zones: Mapping[str, str]
) -> list[Create | Delete]:
    """Return the actions for all claims and volumes of the cluster; `zones` maps a node's name to its zone, if any."""
    existing = {volume["metadata"]["name"] for volume in volumes}
    wanted = [_volume(claim, zones) for claim in claims if _is_waiting(claim, zones)]
    actions: list[Create | Delete] = [
        Create(volume) for volume in wanted if volume["metadata"]["name"] not in existing
    ]
    for volume in volumes:
        metadata = volume["metadata"]
        ours = metadata.get("annotations", {}).get(_PROVISIONED_BY) == PROVISIONER
        released = volume.get("status", {}).get("phase") == "Released"
        if ours and released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
            actions.append(Delete(metadata["name"], metadata["uid"]))
    return actions


def zones_of(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """Return the zone of each node that has one, by the node's name."""
    labels = {node["metadata"]["name"]: node["metadata"].get("labels", {}) for node in nodes}
    return {name: found[_ZONE] for name, found in labels.items() if _ZONE in found}


class Provisioner:
    """Acts on the API server of `client`; creates volumes in `folder`, which has the same path on the node."""

    def __init__(self, client: ApiClient, folder: Path = VOLUMES) -> None:
        self._client = client
        self._folder = folder

    def act(self, action: Create | Delete) -> None:
        """Perform one action; it is idempotent."""
        if isinstance(action, Create):
            name = action.volume["metadata"]["name"]
            path = self._folder / name
            path.mkdir(parents=True, exist_ok=True)
            # hostPath volumes ignore fsGroup, and pods can run as any user: the folder must be open to all users.
            path.chmod(0o777)
            self._client.request("POST", _VOLUMES, action.volume)
            say(f"created {name}")
            return
        path = self._folder / action.name
        if path.exists():
            shutil.rmtree(path)
        self._client.request("DELETE", f"{_VOLUMES}/{action.name}", {"preconditions": {"uid": action.uid}})
        say(f"deleted {action.name}")

    def reconcile(self) -> None:
        """Read everything and perform all actions; log an action that fails, and let the next round repeat it."""
        claims, volumes, nodes = (
            self._client.request("GET", path)["items"] for path in (_CLAIMS, _VOLUMES, _NODES)
        )
        for action in plan(claims, volumes, zones_of(nodes)):
            try:
                self.act(action)
            except (ApiError, OSError) as error:
                say(f"{action}: {error}")

    def _follow(self, collection: str, changed: threading.Event) -> None:
        while True:
            try:
                version = self._client.request("GET", f"{collection}?limit=1")["metadata"]["resourceVersion"]
                changed.set()
                for _ in self._client.watch(collection, version, _WATCH_SECONDS):
                    changed.set()
            except (ApiError, OSError, http.client.HTTPException) as error:
                say(f"watch of {collection}: {error}")
                time.sleep(_RETRY_SECONDS)

    def run(self) -> None:
        """Watch claims and volumes until the process ends."""
        changed = threading.Event()
        for collection in (_CLAIMS, _VOLUMES):
            threading.Thread(target=self._follow, args=(collection, changed), daemon=True).start()
        while True:
            changed.wait(timeout=_WATCH_SECONDS)
            changed.clear()
            try:
                self.reconcile()
            except (ApiError, OSError, http.client.HTTPException) as error:
                say(f"reconcile: {error}")
                time.sleep(_RETRY_SECONDS)
                changed.set()


def say(text: str) -> None:
    """Write one line of the provisioner's log."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run with the identity of the given kubeconfig."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kubeconfig", type=Path, required=True, help="kubeconfig of the provisioner's identity"
    )
    Provisioner(ApiClient(parser.parse_args().kubeconfig)).run()


if __name__ == "__main__":
    main()
