"""What the provisioner decides from claims and volumes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from devcluster.bootstrap import PROVISIONER
from devcluster.provisioner import Create, Delete, plan

CLAIM: dict[str, Any] = {
    "metadata": {
        "namespace": "team", "name": "data", "uid": "u1",
        "annotations": {
            "volume.kubernetes.io/storage-provisioner": PROVISIONER,
            "volume.kubernetes.io/selected-node": "node1",
        },
    },
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}}},
}  # fmt: skip


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
    (action,) = plan([CLAIM], [])
    assert isinstance(action, Create)
    spec = action.volume["spec"]
    assert action.volume["metadata"]["name"] == "pvc-u1"
    assert spec["capacity"] == {"storage": "3Gi"}
    assert {key: spec["claimRef"][key] for key in ("namespace", "name", "uid")} == {
        "namespace": "team", "name": "data", "uid": "u1",
    }  # fmt: skip
    assert spec["hostPath"]["path"].endswith("/volumes/pvc-u1")


def test_a_claim_whose_volume_exists_gets_no_second_one() -> None:
    assert plan([CLAIM], [volume("Available")]) == []


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("annotations", "volume.kubernetes.io/selected-node", "node2"),
        ("annotations", "volume.kubernetes.io/storage-provisioner", "someone.else/disk"),
        ("metadata", "deletionTimestamp", "2026-01-01T00:00:00Z"),
        ("spec", "volumeName", "pvc-other"),
        ("spec", "volumeMode", "Block"),
    ],
)
def test_a_claim_that_is_not_ours_to_serve_is_left_alone(part: str, key: str, value: str) -> None:
    claim = copy.deepcopy(CLAIM)
    target = claim["metadata"]["annotations"] if part == "annotations" else claim[part]
    target[key] = value
    assert plan([claim], []) == []


def test_a_released_volume_of_ours_is_deleted() -> None:
    assert plan([], [volume("Released")]) == [Delete("pvc-u1", "v1")]


@pytest.mark.parametrize(
    "kept",
    [
        volume("Bound"),
        volume("Released", policy="Retain"),
        volume("Released", provisioner="someone.else/disk"),
    ],
)
def test_other_volumes_are_kept(kept: dict[str, Any]) -> None:
    assert plan([], [kept]) == []
