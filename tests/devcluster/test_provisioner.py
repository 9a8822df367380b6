"""Decisions of the provisioner about claims and volumes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from devcluster.bootstrap import PROVISIONER
from devcluster.provisioner import Create, Delete, plan, zones_of

CLAIM: dict[str, Any] = {
    "metadata": {
        "namespace": "team", "name": "data", "uid": "u1",
        "annotations": {
            "volume.kubernetes.io/storage-provisioner": PROVISIONER,
            "volume.kubernetes.io/selected-node": "node1",
        },
    },
    "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}}, "storageClassName": "standard",
    },
}  # fmt: skip
ZONES = {"node2": "zone-b"}


def changed(part: str, key: str, value: str | None) -> dict[str, Any]:
    """Return CLAIM with one value replaced, or removed if the value is None."""
    claim = copy.deepcopy(CLAIM)
    target = claim["metadata"]["annotations"] if part == "annotations" else claim[part]
    target.pop(key, None)
    if value is not None:
        target[key] = value
    return claim


def terms(claim: dict[str, Any]) -> Any:
    """Return the node affinity of the volume that the provisioner creates for a claim."""
    (action,) = plan([claim], [], ZONES)
    assert isinstance(action, Create)
    return action.volume["spec"].get("nodeAffinity", {}).get("required", {}).get("nodeSelectorTerms")


def volume(phase: str, *, provisioner: str = PROVISIONER, policy: str = "Delete") -> dict[str, Any]:
    metadata = {
        "name": "pvc-u1",
        "uid": "v1",
        "annotations": {"pv.kubernetes.io/provisioned-by": provisioner},
    }
    return {
        "metadata": metadata,
        "spec": {"persistentVolumeReclaimPolicy": policy},
        "status": {"phase": phase},
    }


def test_a_claim_with_a_chosen_node_gets_a_volume_bound_to_it() -> None:
    (action,) = plan([CLAIM], [], ZONES)
    assert isinstance(action, Create)
    spec = action.volume["spec"]
    assert action.volume["metadata"]["name"] == "pvc-u1"
    assert spec["capacity"] == {"storage": "3Gi"}
    assert {key: spec["claimRef"][key] for key in ("namespace", "name", "uid")} == {
        "namespace": "team", "name": "data", "uid": "u1",
    }  # fmt: skip
    assert spec["hostPath"]["path"].endswith("/volumes/pvc-u1")


def test_a_claim_whose_volume_exists_gets_no_second_one() -> None:
    assert plan([CLAIM], [volume("Available")], ZONES) == []


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("annotations", "volume.kubernetes.io/selected-node", "node2"),
        ("annotations", "volume.kubernetes.io/storage-provisioner", "someone.else/disk"),
        ("metadata", "deletionTimestamp", "2026-01-01T00:00:00Z"),
        ("spec", "volumeName", "pvc-other"),
        ("spec", "volumeMode", "Block"),
        ("spec", "storageClassName", "another"),
    ],
)
def test_claims_of_other_provisioners_and_unready_claims_are_ignored(part: str, key: str, value: str) -> None:
    assert plan([changed(part, key, value)], [], ZONES) == []


def test_a_volume_of_the_default_class_is_bound_to_the_node() -> None:
    (term,) = terms(CLAIM)
    (expression,) = term["matchExpressions"]
    assert (expression["key"], expression["values"]) == ("kubernetes.io/hostname", ["node1"])


def test_a_zonal_volume_can_be_used_in_the_zone_of_the_chosen_node() -> None:
    claim = changed("annotations", "volume.kubernetes.io/selected-node", "node2")
    claim["spec"]["storageClassName"] = "zonal"
    (term,) = terms(claim)
    (expression,) = term["matchExpressions"]
    assert (expression["key"], expression["values"]) == ("topology.kubernetes.io/zone", ["zone-b"])


def test_a_zonal_claim_waits_for_a_node_with_a_zone() -> None:
    claim = changed("spec", "storageClassName", "zonal")
    assert plan([claim], [], ZONES) == []


def test_a_shared_volume_waits_for_no_node_and_serves_all() -> None:
    claim = changed("annotations", "volume.kubernetes.io/selected-node", None)
    claim["spec"]["storageClassName"] = "shared"
    assert terms(claim) is None


def test_zones_come_from_node_labels() -> None:
    zoned = {"metadata": {"name": "node2", "labels": {"topology.kubernetes.io/zone": "zone-b"}}}
    assert zones_of([zoned, {"metadata": {"name": "node3"}}]) == ZONES


def test_a_released_volume_of_this_provisioner_is_deleted() -> None:
    assert plan([], [volume("Released")], ZONES) == [Delete("pvc-u1", "v1")]


@pytest.mark.parametrize(
    "kept",
    [
        volume("Bound"),
        volume("Released", policy="Retain"),
        volume("Released", provisioner="someone.else/disk"),
    ],
)
def test_other_volumes_are_kept(kept: dict[str, Any]) -> None:
    assert plan([], [kept], ZONES) == []
